"""Networks of torchvision, those that look at images and those that look at clips: ``name`` or ``name:WEIGHTS``."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnnbrain_app.errors import UnknownNameError, UsageError
from dnnbrain_app.networks.network import Network
from dnnbrain_app.networks.options import NetworkOptions
from dnnbrain_app.networks.sources import list_networks, stamp_file

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torchvision.models import WeightsEnum

    from dnnbrain_app.networks.weights import Progress

# known without importing torchvision, which takes seconds
CLIPS = ("mc3_18", "mvit_v1_b", "mvit_v2_s", "r2plus1d_18", "r3d_18", "s3d", "swin3d_b", "swin3d_s", "swin3d_t")
_LICENCE = "BSD-3-Clause (torchvision; no other licence is stated for the weights)"


def list_names() -> dict[str, list[str]]:
    """Name the networks, those of images first, each with its published weights."""
    from torchvision import models

    names = [*models.list_models(module=models), *models.list_models(module=models.video)]
    return {name: [entry.name for entry in models.get_model_weights(name)] for name in names}


def load(name: str, options: NetworkOptions, *, fill: bool) -> Network:
    """Load a network; with `fill` false, with random weights and no file.

    Raises
    ------
    UnknownNameError
        No such network or weights.
    UsageError
        A number of frames that the network cannot take.
    MissingInputError
        Weights that are not on this machine.
    BadDataError
        Weights with a wrong hash, of another architecture, or with code in them.
    """
    from dnnbrain_app.networks import weights
    from dnnbrain_app.networks.aliases import find_aliases
    from dnnbrain_app.networks.families import find_main_layers
    from dnnbrain_app.networks.transforms import describe_transform, make_transform

    entry = _find_entry(name)
    architecture, steps = name.partition(":")[0], _list_steps(entry)
    provenance = {
        "Name": f"{architecture}:{entry.name}" if options.weights is None else architecture,
        "License": _find_licence(entry) if options.weights is None else "the user's",
        "Source": entry.url if options.weights is None else str(options.weights),
        "Transform": describe_transform(*steps),
        "Precision": "float32",
        "Torchvision": importlib.metadata.version("torchvision"),
    }
    n_frames = 0
    if architecture in CLIPS:
        n_frames = provenance["Frames"] = _check_frames(architecture, entry, options)
    if fill:
        weights.warn_licence(name, provenance["License"])
        path = weights.find_weights(name, entry.url, options)
        state, provenance["SHA256"] = weights.read_weights(path)
        provenance["Weights"] = path.name
        model = _build_filled(architecture, entry, state, path)
    else:
        model = _build(architecture, _find_settings(architecture, entry))
    layers = find_main_layers(architecture, model)
    if not entry.meta["categories"]:  # published without numbers for the classifier
        layers = tuple(layer for layer in layers if not layer.startswith("classifier"))
    transform, normalize = make_transform(*steps, clips=n_frames > 0)
    return Network(
        name,
        weights.freeze_model(model),
        transform,
        layers,
        provenance,
        normalize,
        find_aliases(model),
        n_frames,
    )


def identify(name: str, options: NetworkOptions) -> dict[str, Any]:
    """Say what the values depend on: a published file is known by its name, whose hash is checked on loading."""
    identity: dict[str, Any] = {"torchvision": importlib.metadata.version("torchvision")}
    if options.weights is not None:
        identity["weights"] = stamp_file(options.weights)
    if name.partition(":")[0] in CLIPS:
        identity["frames"] = options.clip_frames
    return identity


def fetch(name: str, options: NetworkOptions, progress: Progress | None) -> Path:
    """Download the published weights."""
    from dnnbrain_app.networks.weights import fetch_published

    entry = _find_entry(name)
    return fetch_published(name, entry.url, _find_licence(entry), options, progress)


def _find_entry(name: str) -> WeightsEnum:
    from torchvision import models

    architecture, _, wanted = name.partition(":")
    names = list_names()
    if architecture not in names:
        hint = "Or timm/NAME, onnx:FILE, keras:FILE, act:FILE, or module:callable for a network of your own."
        raise UnknownNameError("network", architecture, list_networks(), hint=hint)
    # without a name the first, never torchvision's DEFAULT, which is another one from version to version
    wanted = wanted or names[architecture][0]
    if wanted not in names[architecture]:
        raise UnknownNameError(f"weights of {architecture}", wanted, names[architecture])
    return models.get_model_weights(architecture)[wanted]


def _find_licence(entry: WeightsEnum) -> str:
    licence: str = entry.meta.get("license", _LICENCE)
    return licence


def _check_frames(architecture: str, entry: WeightsEnum, options: NetworkOptions) -> int:
    n_frames, least = options.clip_frames, entry.meta.get("min_temporal_size", 1)
    is_fixed = architecture.startswith("mvit")  # it has learnt a place for each frame
    if n_frames < least or (is_fixed and n_frames != least):
        number = f"{least} frames{'' if is_fixed else ' or more'}"
        raise UsageError(f"{architecture} looks at clips of {number}, not {n_frames}; set --clip-frames {least}.")
    return n_frames


def _find_settings(architecture: str, entry: WeightsEnum) -> dict[str, Any]:
    """Find the constructor arguments that torchvision sets by itself only when it loads the weights itself."""
    settings: dict[str, Any] = {"num_classes": len(entry.meta["categories"] or range(1000))}
    if architecture in ("googlenet", "inception_v3"):
        settings |= {"transform_input": True, "aux_logits": True, "init_weights": False}
    if architecture.startswith("vit_"):
        settings["image_size"] = entry.meta["min_size"][0]
    if architecture == "maxvit_t":
        settings["input_size"] = entry.meta["min_size"]
    return settings


def _build(architecture: str, settings: Mapping[str, Any]) -> nn.Module:
    """Build a network with random weights, which are the same each time."""
    import torch
    from torchvision import models

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = models.get_model(architecture, weights=None, **settings)
    return model


def _build_filled(architecture: str, entry: WeightsEnum, state: Mapping[str, Tensor], path: Path) -> nn.Module:
    """Build a network for the weights in a file, which may be fine-tuned for other classes, and fill it."""
    from dnnbrain_app.networks.weights import fill_model, strip_prefix

    settings = _find_settings(architecture, entry)
    if "aux_logits" in settings:  # the heads that help in training; torchvision itself drops those of GoogLeNet
        settings["aux_logits"] = any("aux" in name.lower() for name in state)
    model = _build(architecture, settings)
    if architecture.startswith("densenet"):  # the published files predate today's names: norm.1 is norm1
        state = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)", r"\1", name): state[name] for name in state}
    state = strip_prefix(state, model)
    classifier = list(model.state_dict())[-1]
    n_classes = len(state[classifier]) if classifier in state else settings["num_classes"]
    if n_classes != settings["num_classes"]:
        model = _build(architecture, settings | {"num_classes": n_classes})
    fill_model(model, state, path)
    return model


def _list_steps(entry: WeightsEnum) -> tuple[Any, ...]:
    """Take the publisher's transform apart: what `make_transform` takes."""
    preset = entry.transforms()
    crop, resize = (side[0] if len(side) == 1 else tuple(side) for side in (preset.crop_size, preset.resize_size))
    return crop, resize, preset.mean, preset.std, preset.interpolation.value

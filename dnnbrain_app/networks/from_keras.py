"""Networks saved by Keras 3, computed by torch: ``keras:FILE``.

A ``.keras`` file describes layers, has their weights, and may have code, which ``safe_mode`` refuses; but that has been
got round more than once, so such a file deserves the trust of a program. With torch behind it, Keras gives gradients.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnnbrain_app.errors import BadDataError, MissingInputError, UsageError
from dnnbrain_app.networks.network import Network
from dnnbrain_app.networks.options import NetworkOptions
from dnnbrain_app.networks.sources import find_version, list_preprocessing, stamp_file

if TYPE_CHECKING:
    from torch import Tensor

    from dnnbrain_app.networks.outputs import OutputModel

logger = logging.getLogger(__name__)

_JOINS = ("Add", "Concatenate", "Average", "Maximum")
_ACTIVATIONS = ("Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "Relu", "Gelu", "Silu")
_MINOR = (
    *("BatchNormalization", "LayerNormalization", "Dropout", "SpatialDropout2D", "Flatten", "Reshape", "Identity"),
    *("ZeroPadding2D", "Rescaling", "Normalization"),
)


def load(name: str, options: NetworkOptions, *, fill: bool) -> Network:
    """Load a network; with `fill` false, the file is not hashed.

    Raises
    ------
    MissingInputError
        A file that is not there, or Keras.
    BadDataError
        A file that Keras cannot read, has code in it, or has no network of images.
    UsageError
        Another format; weights beside those in the file; Keras was imported with something else than torch behind it.
    """
    from dnnbrain_app.networks import outputs
    from dnnbrain_app.networks.transforms import describe_transform, make_transform
    from dnnbrain_app.networks.weights import check_hash

    outputs.refuse_weights(name, options.weights)
    version = find_version("keras", "networks named keras:FILE", "keras")
    path = _find_file(name)
    network = _read(path)
    size, channels_last = _find_input(network, path)
    default, *rest = list_preprocessing(options)
    recipe = (size or default, *rest)
    provenance = {
        "Name": name,
        "License": "not stated in the file",
        "Source": str(path),
        "Transform": f"{describe_transform(*recipe)}; chosen by the user, as the file does not say",
        "Precision": network.compute_dtype,
        "Keras": version,
    }
    if fill:
        provenance |= {"Weights": path.name, "SHA256": check_hash(path)}
    operations: dict[int, tuple[str, Any]] = {}  # each once, also one that several models share
    for place, operation in _list_operations(network):
        operations.setdefault(id(operation), (place, operation))
    kinds = {place: type(operation).__name__ for place, operation in operations.values()}
    if "Rescaling" in kinds.values() or "Normalization" in kinds.values():
        logger.warning(
            "%s: the network prepares pixels itself, and sees (value / 255 - %s) / %s; for plain pixels: "
            "--mean 0 --std 0.00392157",
            *(name, options.mean, options.std),
        )
    model = outputs.OutputModel(kinds, partial(_run, network, channels_last=channels_last)).eval()
    for place, operation in operations.values():
        # Keras calls `call` of each of its layers and functions
        operation.call = partial(_show, model, place, operation.call, channels_last=channels_last)
    transform, normalize = make_transform(*recipe)
    return Network(
        name,
        model,
        transform,
        _choose_main(kinds),
        provenance,
        normalize,
        differentiable=_reaches_input(model, recipe[0], path),
    )


def identify(name: str, options: NetworkOptions) -> dict[str, Any]:
    """Say what the values depend on: the file, Keras, and the user's preprocessing."""
    return {
        "weights": stamp_file(_find_file(name)),
        "keras": find_version("keras", "networks named keras:FILE", "keras"),
        "preprocessing": list_preprocessing(options),
    }


def _find_file(name: str) -> Path:
    path = Path(name.partition(":")[2]).expanduser()
    if not path.is_file():
        raise MissingInputError(f"network {name}: file not found: {path}")
    if path.suffix != ".keras":
        raise UsageError(
            f"network {name}: only .keras files are read; save the model again, with Keras 3: model.save('x.keras')"
        )
    return path


def _read(path: Path) -> Any:
    """Read a model, on the CPU.

    Raises
    ------
    UsageError
        If something other than torch is behind Keras.
    BadDataError
        If it cannot be read.
    """
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "torch"  # Keras looks at this once, when it is imported
    import keras

    if keras.backend.backend() != "torch":
        raise UsageError(
            f"{path}: Keras was imported with {keras.backend.backend()} behind it; set KERAS_BACKEND=torch beforehand."
        )
    if not zipfile.is_zipfile(path):
        raise BadDataError(f"{path}: not a .keras file, or a damaged one.")
    try:
        with keras.device("cpu"):
            network = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # whatever a layer's own code may raise
        raise BadDataError(f"{path}: Keras cannot read it: {_shorten(error)}") from error
    network.trainable = False
    return network


def _find_input(network: Any, path: Path) -> tuple[tuple[int, int] | None, bool]:
    """Find the size of the images, if it is fixed, and whether the colours come last.

    Raises
    ------
    BadDataError
        If the network takes something else.
    """
    inputs = getattr(network, "inputs", None)
    if not inputs:
        raise BadDataError(f"{path}: not a functional or Sequential model with a shape of input; it hides its layers.")
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs)
        raise BadDataError(f"{path}: takes {len(inputs)} inputs ({names}); a network of images takes one.")
    shape = inputs[0].shape
    if len(shape) != 4 or 3 not in (shape[1], shape[3]):
        raise BadDataError(
            f"{path}: takes {shape}; a network of images takes (None, rows, columns, 3) or (None, 3, rows, columns)."
        )
    channels_last = shape[3] == 3
    rows, columns = shape[1:3] if channels_last else shape[2:]
    return ((rows, columns) if rows and columns else None), channels_last


def _list_operations(network: Any, within: str = "") -> Iterator[tuple[str, Any]]:
    """List the layers and functions of a model, then those of the models in it, with names as paths."""
    import keras

    from dnnbrain_app.networks.outputs import make_name

    names: set[str] = set()
    for operation in getattr(network, "operations", None) or network.layers:
        if isinstance(operation, keras.layers.InputLayer):
            continue
        names.add(name := make_name(operation.name, names))
        yield f"{within}{name}", operation
        if isinstance(operation, keras.Model):
            yield from _list_operations(operation, f"{within}{name}.")


def _run(network: Any, images: Tensor, _model: OutputModel, *, channels_last: bool) -> Tensor:
    """Run a batch (n, 3, rows, columns), where it is."""
    import keras

    with keras.device(str(images.device)):
        for variable in network.variables:  # which torch does not find, and so does not move
            if variable.value.device != images.device:
                variable.value.data = variable.value.data.to(images.device)
        batch = images.permute(0, 2, 3, 1) if channels_last else images
        output = network(keras.tree.map_structure(lambda _: batch, getattr(network, "input", batch)), training=False)
    first: Tensor = keras.tree.flatten(output)[0]
    return first


def _show(
    model: OutputModel, place: str, call: Callable[..., Any], *args: Any, channels_last: bool, **settings: Any
) -> Any:
    """Call a layer, and show what it gives, with the channels first."""
    output = call(*args, **settings)
    if not channels_last:
        return model.show(place, output)
    return _permute(model.show(place, _permute(output, (0, 3, 1, 2))), (0, 2, 3, 1))


def _permute(output: Any, order: tuple[int, ...]) -> Any:
    """Change the order of the axes of each image in what a layer gives."""
    import keras

    return keras.tree.map_structure(lambda part: part.permute(order) if part.ndim == 4 else part, output)


def _choose_main(kinds: Mapping[str, str]) -> tuple[str, ...]:
    """Choose where branches meet (the ends of residual blocks, of inception modules), after what rectifies it.

    In networks with few such places: all layers that are not minor. And the last one.
    """
    whole = {place.rpartition(".")[0] for place in kinds}
    places = [place for place in kinds if place not in whole]
    followers = dict(zip(places, [*places[1:], places[-1]], strict=True))
    joins = [place for place in places if kinds[place] in _JOINS]
    if len(joins) > 2:
        chosen = [followers[place] if kinds[followers[place]] in _ACTIVATIONS else place for place in joins]
    else:
        chosen = [place for place in places if kinds[place] not in _MINOR]
    return tuple(dict.fromkeys([*chosen, places[-1]]))


def _reaches_input(model: OutputModel, size: int | tuple[int, int], path: Path) -> bool:
    """Whether a change of the image would change the output, for all that gradients know."""
    import torch

    shape = (size, size) if isinstance(size, int) else size
    try:
        return bool(model(torch.zeros(1, 3, *shape, requires_grad=True)).requires_grad)
    except Exception as error:  # whatever a layer's own code may raise
        raise BadDataError(f"{path}: a trial image failed: {_shorten(error)}") from error


def _shorten(error: Exception) -> str:
    """Leave out the colours, the arguments, and how to be careless."""
    text = re.sub(r"\x1b\[\d*m", "", " ".join(str(error).split()))
    return f"{type(error).__name__}: {re.split('Arguments received by|If you trust', text)[0].strip()}"

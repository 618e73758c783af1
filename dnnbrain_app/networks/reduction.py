"""What is kept of a layer: some channels and positions, or a summary of each channel's map."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from dnnbrain_app.errors import BadDataError, MissingInputError, UnknownNameError, UsageError
from dnnbrain_app.networks.layers import Layer, find_layer, match_layers

Numbers = tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Selection:
    """What a mask keeps of a layer, counted from 1, in this order; None keeps all.

    Parameters
    ----------
    channels, rows, columns : tuple of int, optional
        Of tokens, the rows are the tokens; of clips, rows and columns are those of every frame.
    """

    channels: Numbers = None
    rows: Numbers = None
    columns: Numbers = None


@dataclass(frozen=True, slots=True)
class Reduction:
    """What is kept of a layer: first the mask selects, then the pooling summarises each channel.

    Parameters
    ----------
    selection : Selection
        Channels and positions.
    pooling : str
        ``max``, ``mean``, ``median`` (of an even number of values: the mean of the two in the middle), ``l1``, ``l2``
        (norms of the channel's values), ``gridN`` (means over N x N fields of each map or frame, which overlap by one
        position where N does not divide it; a smaller map stays as it is), or nothing.
    """

    selection: Selection = Selection()
    pooling: str = ""

    def apply(self, tensor: Tensor) -> Tensor:
        """Reduce (n, channels, ...) to float32 with as many axes, on the same device."""
        numbers = (self.selection.channels, self.selection.rows, self.selection.columns)
        for axis, chosen in zip((1, -2, -1), numbers, strict=True):
            if chosen is not None:
                tensor = tensor.index_select(axis, torch.tensor(chosen, device=tensor.device) - 1)
        tensor = tensor.to(torch.float32)
        if self.pooling.startswith("grid"):
            return _pool_grid(tensor, int(self.pooling.removeprefix("grid")))
        if self.pooling:
            return _POOLINGS[self.pooling](tensor.flatten(2)).reshape(*tensor.shape[:2], *[1] * (tensor.ndim - 2))
        return tensor


def _pool_grid(tensor: Tensor, n_fields: int) -> Tensor:
    fields = min(n_fields, tensor.shape[-2]), min(n_fields, tensor.shape[-1])
    pooled = functional.adaptive_avg_pool2d(tensor.flatten(1, -3), fields)  # of clips, every frame
    return pooled.reshape(*tensor.shape[:-2], *fields)


def _find_median(values: Tensor) -> Tensor:
    """Average the lower and the upper median; torch's own is the lower, and both pass NaN on."""
    return (values.median(2).values - (-values).median(2).values) / 2


_POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda values: values.amax(2),
    "mean": lambda values: values.mean(2),
    "median": _find_median,
    "l1": lambda values: torch.linalg.vector_norm(values, 1, dim=2),
    "l2": lambda values: torch.linalg.vector_norm(values, 2, dim=2),
}


def plan_reduction(layers: Sequence[Layer], masks: Mapping[str, Selection], pooling: Sequence[str]) -> list[Layer]:
    """Say what is kept of each layer.

    Parameters
    ----------
    layers : sequence of Layer
        The chosen ones.
    masks : mapping of str to Selection
        By name or alias of a layer, as `parse_mask` returns it. Layers without one are kept whole.
    pooling : sequence of str
        Methods of `Reduction`: for all layers (``max``) or for some (``layer1.*=grid2``), of which the last that fits
        counts. Layers of units, without maps, are never pooled.

    Returns
    -------
    list of Layer
        The same layers, with the `reduction`, and the shape that it leaves.

    Raises
    ------
    UnknownNameError
        A layer or a method that does not exist.
    BadDataError
        A mask with channels, rows or columns that the layer does not have.
    UsageError
        Two methods for all layers; a grid over tokens; two masks for one layer.
    """
    selections: dict[str, Selection] = {}
    for name, selection in masks.items():
        layer = find_layer(name, layers)
        if layer.name in selections:
            raise UsageError(f"layer {layer.name!r} has two masks; one of them is called {name!r}.")
        selections[layer.name] = _check_selection(selection, layer)
    methods = _assign_pooling(layers, pooling)
    return [_reduce(layer, selections.get(layer.name, Selection()), methods.get(layer.name, "")) for layer in layers]


def _check_selection(selection: Selection, layer: Layer) -> Selection:
    """Check a mask against a layer's shape; units have one row and one column, which need no selecting."""
    rows, columns = layer.shape[-2:] if len(layer.shape) > 1 else (1, 1)
    sizes = (("channel", selection.channels, layer.shape[0]), ("row", selection.rows, rows))
    for axis, numbers, size in (*sizes, ("column", selection.columns, columns)):
        for number in numbers or ():
            if not 1 <= number <= size:
                raise BadDataError(
                    f"mask of layer {layer.name!r}: {axis} {number} does not exist; there are 1 to {size}."
                )
    return selection if len(layer.shape) > 1 else Selection(selection.channels)


def _assign_pooling(layers: Sequence[Layer], pooling: Sequence[str]) -> dict[str, str]:
    general = [entry for entry in pooling if "=" not in entry]
    if len(general) > 1:
        raise UsageError(
            f"pooling {' and '.join(general)} for all layers: name the layers (LAYER=max) for all but one."
        )
    methods = {layer.name: _check_method(entry) for entry in general for layer in layers}
    for entry in pooling:
        pattern, sign, method = entry.rpartition("=")
        if sign:
            methods |= {layer.name: _check_method(method) for layer in match_layers(pattern, layers)}
    return methods


def _check_method(method: str) -> str:
    if method.lower() not in _POOLINGS and not re.fullmatch(r"grid[1-9]\d*", method.lower()):
        raise UnknownNameError("pooling", method, [*_POOLINGS, "gridN"], hint="N is a number, as in grid4.")
    return method.lower()


def _reduce(layer: Layer, selection: Selection, method: str) -> Layer:
    if len(layer.shape) == 1:
        method = ""
    if method.startswith("grid") and layer.shape[-1] == 1 < layer.shape[-2]:
        raise UsageError(
            f"layer {layer.name!r} has {layer.shape[-2]} tokens, not a map, so {method} cannot pool it; "
            "use max, mean, median, l1 or l2 (for some layers only: LAYER=mean)."
        )
    if selection == Selection() and not method:
        return layer
    reduction = Reduction(selection, method)
    shape = tuple(reduction.apply(torch.zeros(1, *layer.shape)).shape[1:])
    return replace(layer, shape=shape, n_features=math.prod(shape), reduction=reduction)


_AXES = {"chn": "channels", "row": "rows", "col": "columns"}  # as in the file, and as in a Selection


def parse_mask(path: Path) -> dict[str, Selection]:
    """Read a ``.dmask.csv``: which channels, rows and columns of which layers.

    A line ``layer=chn,row`` names a layer and axes (``chn``, ``row``, ``col``), and a line of numbers, counted from 1
    and divided by commas, follows for each axis; ``layer=`` alone keeps the whole layer.

    Raises
    ------
    MissingInputError
        No such file.
    BadDataError
        What is wrong, and in which line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise MissingInputError(f"mask file not found: {path}") from error
    except UnicodeDecodeError as error:
        raise BadDataError(f"{path}: is not a text file.") from error
    masks: dict[str, Selection] = {}
    numbered = [(i, line.strip()) for i, line in enumerate(lines, 1) if line.strip()]
    while numbered:
        number, line = numbered.pop(0)
        layer, sign, listed = line.rpartition("=")
        axes = [axis.strip() for axis in listed.split(",")] if listed.strip() else []
        if not sign or not layer.strip() or not _AXES.keys() >= set(axes) or len(set(axes)) < len(axes):
            raise BadDataError(
                f"{path}, line {number}: {line!r} should be layer=, or layer=chn,row,col or some of them."
            )
        if layer.strip() in masks:
            raise BadDataError(f"{path}, line {number}: layer {layer.strip()!r} is there twice.")
        if len(numbered) < len(axes):
            raise BadDataError(f"{path}, line {number}: {line!r} should be followed by {len(axes)} lines of numbers.")
        values = {_AXES[axis]: _parse_numbers(path, *numbered.pop(0)) for axis in axes}
        masks[layer.strip()] = Selection(**values)
    if not masks:
        raise BadDataError(f"{path}: names no layer.")
    return masks


def _parse_numbers(path: Path, number: int, line: str) -> tuple[int, ...]:
    texts = [text.strip() for text in line.split(",")]
    if not all(re.fullmatch(r"0*[1-9]\d{0,8}", text) for text in texts):
        raise BadDataError(f"{path}, line {number}: {line!r} should be whole numbers from 1, divided by commas.")
    values = tuple(map(int, texts))
    if len(set(values)) < len(values):
        twice = next(value for value in values if values.count(value) > 1)
        raise BadDataError(f"{path}, line {number}: {twice} is there twice.")
    return values


def format_mask(masks: Mapping[str, Selection]) -> str:
    """Spell out what `parse_mask` reads."""
    lines = []
    for layer, selection in masks.items():
        chosen = {axis: getattr(selection, name) for axis, name in _AXES.items()}
        chosen = {axis: numbers for axis, numbers in chosen.items() if numbers is not None}
        lines += [f"{layer}={','.join(chosen)}", *(",".join(map(str, numbers)) for numbers in chosen.values())]
    return "\n".join(lines) + "\n"

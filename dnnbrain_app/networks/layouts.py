"""Which axis of a tensor has the channels: followed through a forward pass, from layers for which it is known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

_FIRST = ("conv", "batch_norm", "group_norm", "instance_norm", "pool", "interpolate", "pixel_shuffle")
_LAST = ("linear", "layer_norm", "rms_norm")
_RESHAPES = ("reshape", "view", "flatten", "unflatten")


class ChannelFollower(TorchFunctionMode):
    """Within the ``with``: convolutions put channels first, linear layers last, and other functions keep or turn them.

    Shapes alone do not tell: 56 x 56 x 96 can be 96 channels or, in networks that run channels last (Swin, parts of
    ConvNeXt), 56 x 56 positions.
    """

    def __init__(self) -> None:
        self._axes = WeakIdKeyDictionary()

    def find_axis(self, tensor: Tensor) -> int | None:
        """Return the axis that has the channels, if it is known."""
        axis: int | None = self._axes.get(tensor)  # type: ignore[no-untyped-call]
        return axis

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in _list_tensors(output):
            axis = self._follow(getattr(func, "__name__", "").strip("_"), list(_list_tensors(args)), tensor)
            if axis is not None:
                self._axes[tensor] = axis
        return output

    def _follow(self, name: str, inputs: list[Tensor], output: Tensor) -> int | None:
        if any(part in name for part in _FIRST):
            return 1
        if any(part in name for part in _LAST):
            return output.ndim - 1
        known = [(tensor, axis) for tensor in inputs if (axis := self.find_axis(tensor)) is not None]
        if not known:
            return None
        tensor, axis = next((pair for pair in known if pair[0].ndim == output.ndim), known[0])
        if name in _RESHAPES:
            return _follow_reshape(tensor, axis, output)
        if output is not tensor and _share_memory(tensor, output):
            return _follow_view(tensor, axis, output)
        return axis if output.ndim == tensor.ndim else None


def _follow_view(tensor: Tensor, axis: int, output: Tensor) -> int | None:
    """Find the axis with the same stride, and if there are several, of the same length."""
    fits = [i for i in range(output.ndim) if output.stride(i) == tensor.stride(axis)]
    return max(fits, key=lambda i: output.shape[i] == tensor.shape[axis], default=None)


def _follow_reshape(tensor: Tensor, axis: int, output: Tensor) -> int | None:
    """Find the axis of the same length that has as many elements before it."""
    before, length = math.prod(tensor.shape[:axis]), tensor.shape[axis]
    fits = (i for i in range(output.ndim) if math.prod(output.shape[:i]) == before and output.shape[i] == length)
    return next(fits, None)


def _share_memory(tensor: Tensor, other: Tensor) -> bool:
    return tensor.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _list_tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _list_tensors(value)

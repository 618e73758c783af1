"""The activations of chosen layers during one forward pass."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from dnnbrain_app.errors import TemporaryError, UsageError
from dnnbrain_app.networks.layers import Layer, turn_channels
from dnnbrain_app.networks.network import Network
from dnnbrain_app.networks.tracing import FUNCTION, Enough, Tracer, find_tensor
from dnnbrain_app.records import Array

logger = logging.getLogger(__name__)

_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_TILE = 1 << 15  # values that the fast caches of a core hold


class Recorder:
    """Watches the chosen layers of a network, for as long as the ``with`` lasts.

    A layer's values do not depend on which other layers are watched, nor (beyond rounding) on the batch.

    Parameters
    ----------
    network : Network
        Its model is moved to `device`.
    layers : sequence of Layer
        From `choose_layers`, or with a `reduction` from `plan_reduction`.
    device : torch.device
        Where to compute.
    precision : str
        ``float32``, or ``bfloat16`` for the whole model (a copy of it).

    Raises
    ------
    UsageError
        Another precision, or bfloat16 for a network whose numbers are not torch's (ONNX, Keras).
    """

    def __init__(
        self, network: Network, layers: Sequence[Layer], device: torch.device, *, precision: str = "float32"
    ) -> None:
        self._dtype = _find_dtype(precision, network, device)
        # all of it, not torch's autocast, which turns the weights again for every batch
        model = network.model if self._dtype == torch.float32 else copy.deepcopy(network.model).to(self._dtype)
        self._model = model.to(device)
        self._network = network
        self._device = device
        self._layers = {(layer.path, layer.call): layer for layer in layers}
        self._values: dict[str, Tensor] = {}
        self._batch_size: int | None = None
        self._channels_innermost: bool | None = None
        self._tracer = Tracer(
            self._model,
            self._keep,
            paths={layer.path for layer in layers},
            functions=any(layer.kind == FUNCTION for layer in layers),
        )

    def __enter__(self) -> Self:
        self._tracer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tracer.__exit__(kind, error, trace)

    def run(self, images: Tensor) -> dict[str, Tensor]:
        """Look at a batch; in smaller batches from now on if memory is short.

        Parameters
        ----------
        images : tensor of shape (n, ...)
            What the network's transform gave, stacked.

        Returns
        -------
        dict of str to tensor of shape (n, n_features)
            By the name of the layer, in the order of the forward pass: float32, on the CPU, channels first.

        Raises
        ------
        TemporaryError
            Not enough memory for a single image.
        UsageError
            A module in training mode; a layer that does not fire for these images.
        """
        while True:
            size = self._batch_size or len(images)
            try:
                pieces = [self._run_piece(piece) for piece in torch.split(images, size)]
                return (
                    pieces[0] if len(pieces) == 1 else {k: torch.cat([piece[k] for piece in pieces]) for k in pieces[0]}
                )
            except (MemoryError, RuntimeError) as error:
                if not _is_memory(error):
                    raise
                if size == 1:
                    raise TemporaryError(
                        "not enough memory for a single image; give it more, or choose fewer layers."
                    ) from error
            self._values = {}
            if self._device.type != "cpu":
                torch.get_device_module(self._device).empty_cache()
            self._batch_size = max(1, min(size, len(images)) // 2)
            logger.warning("not enough memory for %d images at once; going on with %d", size, self._batch_size)

    def _run_piece(self, images: Tensor) -> dict[str, Tensor]:
        training = [name or "the network" for name, module in self._model.named_modules() if module.training]
        if training:
            raise UsageError(f"{training[0]} is in training mode: its activations would depend on the batch.")
        if self._channels_innermost is None:
            self._channels_innermost = self._settle_layout(images[:1])
        self._values = {}
        self._tracer.run(self._prepare(images, channels_innermost=self._channels_innermost))
        silent = [layer.name for layer in self._layers.values() if layer.name not in self._values]
        if silent:
            raise UsageError(f"layer {silent[0]!r} fired in the trial run but not for these stimuli.")
        other = [name for name, rows in self._values.items() if len(rows) != len(images)]
        if other:
            raise UsageError(f"layer {other[0]!r} gives no row for each stimulus; choose another.")
        if self._device.type != "cpu":
            torch.get_device_module(self._device).synchronize()  # copies to the CPU may still be under way
        return self._values

    def _settle_layout(self, image: Tensor) -> bool:
        """Try to have the channels innermost in memory, which is faster, but which some code (`x.view`) cannot take.

        The pass is a whole one, so that the layout does not depend on which layers are watched.
        """
        for channels_innermost in (True, False):
            _arrange_weights(self._model, channels_innermost=channels_innermost)
            try:
                self._tracer.run(self._prepare(image, channels_innermost=channels_innermost), quietly=True)
            except Exception as error:  # whatever a user's module may raise
                if _is_memory(error):
                    raise
                failure = error
            else:
                return channels_innermost
        hint = "" if self._dtype == torch.float32 else "; try precision float32"
        raise UsageError(f"network {self._network.name} fails: {type(failure).__name__}: {failure}{hint}.") from failure

    def _prepare(self, images: Tensor, *, channels_innermost: bool) -> Tensor:
        images = _arrange(images.to(self._device, non_blocking=True), channels_innermost=channels_innermost)
        return self._network.normalize(images).to(self._dtype)

    def _keep(self, path: str, call: int, _kind: str, output: Any) -> None:
        layer = self._layers.get((path, call))
        if layer is None:
            return
        tensor = find_tensor(output)
        assert tensor is not None  # the trial run saw it
        kept = turn_channels(tensor, channels_last=layer.channels_last)
        # always a copy: the network may still work in place on the output (ResNet adds its input to it)
        self._values[layer.name] = _copy_rows(layer.reduction.apply(kept) if layer.reduction else kept)
        if len(self._values) == len(self._layers):
            raise Enough


def _arrange_weights(model: nn.Module, *, channels_innermost: bool) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("weight"):  # of convolutions, where they have 4 axes
            parameter.data = _arrange(parameter.data, channels_innermost=channels_innermost)


def _arrange(tensor: Tensor, *, channels_innermost: bool) -> Tensor:
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim) if channels_innermost else None
    return tensor.contiguous(memory_format=layout or torch.contiguous_format)


def _copy_rows(tensor: Tensor) -> Tensor:
    """Copy (n, channels, ...) to float32 (n, n_features) on the CPU; from another device, without waiting for it."""
    tensor = tensor.to(torch.float32)
    if tensor.device.type != "cpu":
        rows = torch.empty(tensor.flatten(1).shape, pin_memory=tensor.device.type == "cuda")
        return rows.copy_(tensor.flatten(1), non_blocking=True)
    values = np.empty(tensor.shape, dtype=np.float32)  # numpy asks for huge pages: half the time where they are many
    innermost = tensor.movedim(1, -1)
    if innermost.is_contiguous() and not tensor.is_contiguous():
        positions = innermost.flatten(1, -2)
        _transpose(positions.numpy(), values.reshape(positions.mT.shape))
    else:
        np.copyto(values, tensor.numpy())
    return torch.from_numpy(values).flatten(1)


def _transpose(source: Array, target: Array) -> None:
    """Copy (n, positions, channels) to (n, channels, positions) by pieces that caches hold: nearly twice as fast."""
    width = max(16, _TILE // source.shape[2])
    for rows, columns in zip(source, target, strict=True):
        for start in range(0, len(rows), width):
            columns[:, start : start + width] = rows[start : start + width].T


def _find_dtype(precision: str, network: Network, device: torch.device) -> torch.dtype:
    if precision not in _PRECISIONS:
        raise UsageError(f"precision {precision!r}: should be one of {', '.join(_PRECISIONS)}.")
    if precision != "float32" and next(network.model.parameters(), None) is None:
        raise UsageError(f"precision {precision!r}: network {network.name} does not compute in torch; use float32.")
    if precision != "float32" and device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2":
        logger.warning("this processor has no instructions for %s; float32 would be faster, and exact", precision)
    return _PRECISIONS[precision]


def _is_memory(error: BaseException) -> bool:
    """Whether it says that memory ran out; on the CPU, torch has no class for it."""
    signs = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(sign in str(error) for sign in signs)

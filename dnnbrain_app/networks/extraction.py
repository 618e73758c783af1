"""Activations of all chosen layers in one forward pass a batch, and their Grams."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn

from dnnbrain_app.errors import BadDataError, TemporaryError, UsageError
from dnnbrain_app.networks.gram import accumulate_gram
from dnnbrain_app.networks.layers import Layer, choose_layers, find_tensor, list_layers
from dnnbrain_app.networks.sources import Network
from dnnbrain_app.records import Activations, Array, Gram, StimulusSet

logger = logging.getLogger(__name__)
_BLOCK_FEATURES = 4096
_MAX_READERS = 4


class FeatureStore(Protocol):
    """Where features go; see `derivatives.stores.FeatureStore`."""

    def open(self, layer: str, shape: tuple[int, ...], n_stimuli: int) -> None:
        """Make room for a layer."""

    def write(self, layer: str, start_row: int, rows: Array) -> None:
        """Put float32 rows (n, n_features)."""

    def blocks(self, layer: str, width: int) -> Iterator[Array]:
        """Iterate over (n_stimuli, <= width)."""

    def read(self, layer: str) -> Array:
        """Return (n_stimuli, n_features)."""


def find_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps`` into a device that is there.

    Raises
    ------
    UsageError
        If it is not.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise UsageError(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); try auto or cpu."
        ) from error
    return device


def extract_activations(
    network: Network,
    layers: Sequence[str],
    stimuli: StimulusSet,
    read_image: Callable[[Path], Image],
    *,
    batch_size: int,
    device: str,
    store: FeatureStore,
    progress: Callable[[int, int], None] | None = None,
) -> Activations:
    """Run the stimuli through the network once, and reduce every layer to a Gram.

    Images are read and transformed by threads while the network works on the batch before; identical files are
    computed once; the forward pass stops after the last layer that is needed. Batches are halved if memory is short.

    Parameters
    ----------
    network : Network
        From `load_network`.
    layers : sequence of str
        Names as `list_layers` gives them; ``main``, ``all`` and patterns work too.
    stimuli : StimulusSet
        The n_stimuli rows.
    read_image : callable
        From a path to an RGB image.
    batch_size : int
        Images in one pass; does not change the values beyond rounding.
    device : str
        ``auto``, ``cpu``, ``cuda:0``, ...
    store : FeatureStore
        Takes the features, rows in the order of `stimuli`, units of a layer in the order (channel, row, column).
    progress : callable, optional
        Called with the number of distinct images done, and of all.

    Returns
    -------
    Activations
        Layers in the order of the forward pass.

    Raises
    ------
    BadDataError
        A value that is not finite, an image that the transform refuses.
    UsageError
        A layer that does not exist or fire; a module in training mode; a batch size below 1.
    TemporaryError
        Not enough memory for a single image.
    """
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size}: should be 1 or more.")
    chosen = choose_layers(list_layers(network), layers, network.default_layers)
    for layer in chosen:
        store.open(layer.name, layer.shape, len(stimuli))
    rows_of: dict[str, list[int]] = {}
    for row, digest in enumerate(stimuli.digests):
        rows_of.setdefault(digest, []).append(row)
    places = list(rows_of.values())
    batches = [places[i : i + batch_size] for i in range(0, len(places), batch_size)]
    read = partial(_read_tensor, network, stimuli, read_image)
    done = 0
    with _LayerRecorder(network, chosen, find_device(device)) as recorder:
        for batch, images in zip(batches, _read_batches(batches, read), strict=True):
            for name, values in recorder.run(images).items():
                _check_finite(values, name, batch, stimuli)
                _write_rows(store, name, batch, values.numpy())
            done += len(batch)
            if progress is not None:
                progress(done, len(places))
    grams = tuple(_make_gram(store, layer, depth, len(stimuli)) for depth, layer in enumerate(chosen))
    return Activations(network.label, stimuli.ids, grams, network.provenance)


def _read_tensor(network: Network, stimuli: StimulusSet, read_image: Callable[[Path], Image], row: int) -> Tensor:
    image = read_image(stimuli.paths[row])
    try:
        return network.transform(image)
    except Exception as error:  # whatever a user's transform may raise
        raise BadDataError(f"stimulus {stimuli.ids[row]}: the transform of {network.name} failed: {error}") from error


def _read_batches(batches: Sequence[list[list[int]]], read: Callable[[int], Tensor]) -> Iterator[Tensor]:
    """Yield each batch as a tensor, while threads already read the next."""
    with ThreadPoolExecutor(min(_MAX_READERS, os.cpu_count() or 1)) as pool:
        ahead = [pool.submit(read, rows[0]) for rows in batches[0]] if batches else []
        for following in [*batches[1:], []][: len(batches)]:
            current, ahead = ahead, [pool.submit(read, rows[0]) for rows in following]
            tensors = [future.result() for future in current]
            if len({tensor.shape for tensor in tensors}) > 1:
                shapes = ", ".join(sorted({str(tuple(tensor.shape)) for tensor in tensors}))
                raise BadDataError(f"the network's transform gives images of different shapes: {shapes}")
            yield torch.stack(tensors)


class _Enough(Exception):  # noqa: N818  # not an error: the last layer has fired
    """Ends a forward pass early."""


class _LayerRecorder:
    """Hooks on the chosen modules, for as long as the ``with`` lasts."""

    def __init__(self, network: Network, layers: Sequence[Layer], device: torch.device) -> None:
        self._model = network.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._device = device
        self._names = [layer.name for layer in layers]
        self._calls: Counter[str] = Counter()
        self._values: dict[str, Tensor] = {}
        self._handles: list[Any] = []
        self._batch_size: int | None = None

    def __enter__(self) -> Self:
        modules = dict(self._model.named_modules())
        for path in dict.fromkeys(name.partition(":")[0] for name in self._names):
            self._handles.append(modules[path].register_forward_hook(partial(self._keep, path)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, path: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self._calls[path] += 1
        call = f"{path}:{self._calls[path]}"
        name = path if path in self._names else call
        if name not in self._names:
            return
        tensor = find_tensor(output)
        assert tensor is not None  # the trial run saw it
        rows = tensor.to(torch.float32).flatten(1) if tensor.ndim > 1 else tensor.to(torch.float32)[:, None]
        # functions may still work in place on the output (ResNet adds its input to it), so it must be ours
        self._values[name] = rows.clone() if rows.data_ptr() == tensor.data_ptr() else rows
        if len(self._values) == len(self._names):
            raise _Enough

    def run(self, images: Tensor) -> dict[str, Tensor]:
        """Return each layer's values (n, n_features) for a batch; in smaller batches from now on if memory is short."""
        while True:
            size = self._batch_size or len(images)
            try:
                pieces = [self._run_piece(piece) for piece in torch.split(images, size)]
                return (
                    pieces[0]
                    if len(pieces) == 1
                    else {k: torch.cat([piece[k] for piece in pieces]) for k in self._names}
                )
            except (MemoryError, RuntimeError) as error:
                if not _is_memory(error):
                    raise
                if size == 1:
                    raise TemporaryError(
                        "not enough memory for a single image; give it more, or choose fewer layers."
                    ) from error
            self._values = {}
            self._batch_size = max(1, min(size, len(images)) // 2)
            logger.warning("not enough memory for %d images at once; going on with %d", size, self._batch_size)

    def _run_piece(self, images: Tensor) -> dict[str, Tensor]:
        training = [name or "the network" for name, module in self._model.named_modules() if module.training]
        if training:
            raise UsageError(f"{training[0]} is in training mode: its activations would depend on the batch.")
        self._calls.clear()
        self._values = {}
        images = images.to(self._device)
        if images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        try:
            with torch.inference_mode():
                self._model(images)
        except _Enough:
            pass
        else:
            silent = [name for name in self._names if name not in self._values]
            raise UsageError(f"layer {silent[0]!r} fired in the trial run but not for these stimuli.")
        return {name: values.cpu() for name, values in self._values.items()}


def _is_memory(error: BaseException) -> bool:
    """Whether it says that memory ran out; on the CPU, torch has no class for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _check_finite(values: Tensor, layer: str, batch: Sequence[list[int]], stimuli: StimulusSet) -> None:
    bad = (~torch.isfinite(torch.linalg.vector_norm(values, dim=1))).nonzero()  # K has the squares of these norms
    if len(bad):
        stimulus = stimuli.ids[batch[int(bad[0])][0]]
        raise BadDataError(
            f"layer {layer!r} has values that are not finite, or too large, for stimulus {stimulus!r}: "
            "the weights may be damaged."
        )


def _write_rows(store: FeatureStore, layer: str, batch: Sequence[list[int]], values: Array) -> None:
    """Write a batch to all rows that show its images, in runs of neighbouring rows."""
    rows = np.concatenate(batch)
    sources = np.repeat(np.arange(len(batch)), [len(places) for places in batch])
    order = np.argsort(rows)
    for run in np.split(order, np.flatnonzero(np.diff(rows[order]) != 1) + 1):
        start, stop = sources[run[0]], sources[run[-1]] + 1
        contiguous = np.array_equal(sources[run], np.arange(start, stop))
        store.write(layer, int(rows[run[0]]), values[start:stop] if contiguous else values[sources[run]])


def _make_gram(store: FeatureStore, layer: Layer, depth: int, n_stimuli: int) -> Gram:
    K, row_sums = accumulate_gram(store.blocks(layer.name, _BLOCK_FEATURES))
    X = np.array(store.read(layer.name)) if layer.n_features <= n_stimuli else None
    return Gram(layer.name, layer.shape, depth, K, row_sums, X)

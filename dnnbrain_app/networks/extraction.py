"""Activations of all chosen layers in one forward pass a batch, and their Grams."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dnnbrain_app.errors import BadDataError, UsageError
from dnnbrain_app.networks.allocation import keep_freed_memory
from dnnbrain_app.networks.gram import accumulate_gram
from dnnbrain_app.networks.layers import Layer
from dnnbrain_app.networks.network import Network
from dnnbrain_app.networks.projection import PROJECTION, Projector, sum_rows
from dnnbrain_app.networks.recording import Recorder
from dnnbrain_app.networks.summary import Summary
from dnnbrain_app.records import Array, Gram, StimulusSet

_BLOCK_FEATURES = 4096
_BLOCK_ROWS = 4096
_MAX_READERS = 8

Progress = Callable[[int, int], None]


class FeatureStore(Protocol):
    """Where features go, shard by shard; see `derivatives.features.FeatureStore`."""

    def pending(self) -> list[range]:
        """List the rows of each shard that is not there yet."""

    def write(self, layer: str, start_row: int, rows: Array) -> None:
        """Put float32 rows (n, n_features) into the shard that is being written."""

    def commit(self, rows: range, extras: Mapping[str, Array]) -> None:
        """Declare a shard whole."""

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


def extract_features(
    network: Network,
    layers: Sequence[Layer],
    stimuli: StimulusSet,
    read: Callable[[Path], Any],
    *,
    batch_size: int,
    device: str,
    precision: str,
    store: FeatureStore,
    projector: Projector | None = None,
    summarise: int = 0,
    progress: Progress | None = None,
) -> None:
    """Run the stimuli through the network once, and put what the layers make of them into the store.

    Stimuli are read and transformed by threads while the network works on the batch before, and what came out of that
    one is checked, summarised, projected and written by another thread. At most two batches of images and two of
    features are in memory, however many stimuli there are. The forward pass ends after the last layer that is needed.

    Parameters
    ----------
    network : Network
        From `load_network`.
    layers : sequence of Layer
        From `choose_layers` or `plan_reduction`.
    stimuli : StimulusSet
        The n_stimuli rows; each is computed, also if it is a copy of another.
    read : callable
        From a path to an RGB image, or for a network of clips to a sequence of frames.
    batch_size : int
        Images in one pass; does not change the values beyond rounding.
    device : str
        ``auto``, ``cpu``, ``cuda:0``, ...
    precision : str
        As `Recorder` has it.
    store : FeatureStore
        Open for the shapes of the layers (those that `projector` plans) and n_stimuli; shards that are there already
        are left alone. Units of a layer come in the order (channel, row, column).
    projector : Projector, optional
        Applied to what is stored.
    summarise : int
        Stimuli to tell for each channel as those it likes best; the statistics, of the layers before projection, go
        into the extras of each shard, for `merge_statistics`. 0 for none.
    progress : callable, optional
        Called with the number of stimuli done, and of all.

    Raises
    ------
    BadDataError
        A value that is not finite; a stimulus that the transform refuses, or gives another size than others.
    UsageError
        A layer that does not fire; a module in training mode; a batch size below 1.
    TemporaryError
        Not enough memory for a single image.
    """
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size}: should be 1 or more.")
    shards = store.pending()
    batches = [
        range(start, min(start + batch_size, shard.stop))
        for shard in shards
        for start in range(shard.start, shard.stop, batch_size)
    ]
    total = len(stimuli)
    done = total - sum(map(len, shards))
    tell = progress or (lambda _done, _total: None)
    tell(done, total)
    if not batches:
        return
    place = find_device(device)
    images = _read_batches(batches, partial(_read_stimulus, network, stimuli, read), pinned=place.type == "cuda")
    writer = _Writer(layers, stimuli, shards, store, projector, summarise)
    with (
        keep_freed_memory(),
        Recorder(network, layers, place, precision=precision) as recorder,
        closing(images),
        ThreadPoolExecutor(1) as beside,
    ):
        written: Future[None] | None = None
        for rows in batches:
            values = recorder.run(next(images))
            if written is not None:
                written.result()
                tell(done, total)
            written = beside.submit(writer.put, rows, values)
            done += len(rows)
        assert written is not None  # there is a batch
        written.result()
        tell(done, total)


def _read_stimulus(network: Network, stimuli: StimulusSet, read: Callable[[Path], Any], row: int) -> Tensor:
    stimulus = read(stimuli.paths[row])
    try:
        return network.transform(stimulus)
    except Exception as error:  # whatever a user's transform may raise
        raise BadDataError(f"stimulus {stimuli.ids[row]}: the transform of {network.name} failed: {error}") from error


def _read_batches(batches: Sequence[range], read: Callable[[int], Tensor], *, pinned: bool) -> Generator[Tensor]:
    """Yield each batch as a tensor, while threads already read the next."""
    with ThreadPoolExecutor(min(_MAX_READERS, os.cpu_count() or 1)) as pool:
        ahead = [pool.submit(read, row) for row in batches[0]]
        try:
            for following in [*batches[1:], range(0)]:
                current, ahead = ahead, [pool.submit(read, row) for row in following]
                tensors = [future.result() for future in current]
                if len({tensor.shape for tensor in tensors}) > 1:
                    shapes = ", ".join(sorted({str(tuple(tensor.shape)) for tensor in tensors}))
                    raise BadDataError(f"the network's transform gives images of different shapes: {shapes}")
                batch = torch.stack(tensors)
                yield batch.pin_memory() if pinned else batch
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class _Writer:
    """Takes what the layers made of each batch, in order."""

    def __init__(
        self,
        layers: Sequence[Layer],
        stimuli: StimulusSet,
        shards: Sequence[range],
        store: FeatureStore,
        projector: Projector | None,
        n_top: int,
    ) -> None:
        self._layers = layers
        self._stimuli = stimuli
        self._shards = {shard.stop: shard for shard in shards}
        self._store = store
        self._projector = projector
        self._n_top = n_top
        self._summary = Summary(layers, n_top)

    def put(self, rows: range, values: dict[str, Tensor]) -> None:
        """Store the batch of these rows, layer by layer, which forgets it; and commit the shard that it completes."""
        for layer in self._layers:
            X: Array = values.pop(layer.name).numpy()
            self._check(X, layer, rows)
            if self._n_top:
                self._summary.add(layer.name, rows.start, X)
            self._store.write(layer.name, rows.start, self._projector.apply(layer.name, X) if self._projector else X)
        if rows.stop in self._shards:
            self._store.commit(self._shards[rows.stop], self._summary.extras() if self._n_top else {})
            self._summary = Summary(self._layers, self._n_top)

    def _check(self, X: Array, layer: Layer, rows: range) -> None:
        if X.shape[1] != layer.n_features:
            raise BadDataError(
                f"layer {layer.name!r} has {X.shape[1]} units for stimulus {self._stimuli.ids[rows[0]]!r}, but "
                f"{layer.n_features} in the trial run: the network's transform should give images of one size."
            )
        bad = np.flatnonzero(~np.isfinite(np.einsum("ij,ij->i", X, X)))  # the diagonal of K
        if len(bad):
            raise BadDataError(
                f"layer {layer.name!r} has values that are not finite, or too large, for stimulus "
                f"{self._stimuli.ids[rows[int(bad[0])]]!r}: the weights may be damaged."
            )


def make_grams(
    store: FeatureStore, layers: Sequence[Layer], *, keep_kernel: bool, progress: Progress | None = None
) -> Iterator[Gram]:
    """Make each layer's Gram when it is asked for, so that one at a time is in memory.

    Parameters
    ----------
    store : FeatureStore
        With all rows.
    layers : sequence of Layer
        With the shapes that the store has (those that a projector planned).
    keep_kernel : bool
        Whether to compute K, which takes n_stimuli**2 numbers; the features X are kept too where they take less. If
        not, X alone is kept, as the store gives it: it may be a map of a file.
    progress : callable, optional
        Called with the number of layers done, and of all.

    Yields
    ------
    Gram
        In the order of `layers`.
    """
    for depth, layer in enumerate(layers):
        yield _make_gram(store, layer, depth) if keep_kernel else _wrap_features(store, layer, depth)
        if progress is not None:
            progress(depth + 1, len(layers))


def _make_gram(store: FeatureStore, layer: Layer, depth: int) -> Gram:
    K, row_sums = accumulate_gram(store.blocks(layer.name, _BLOCK_FEATURES))
    if layer.kind == PROJECTION:
        row_sums = sum_rows(store.read(layer.name))
    X = store.read(layer.name) if layer.n_features <= len(K) else None
    return Gram(layer.name, layer.shape, depth, K, row_sums, X)


def _wrap_features(store: FeatureStore, layer: Layer, depth: int) -> Gram:
    X = store.read(layer.name)
    add = sum_rows if layer.kind == PROJECTION else partial(np.sum, axis=1, dtype=np.float64)
    sums = [add(X[start : start + _BLOCK_ROWS]) for start in range(0, len(X), _BLOCK_ROWS)]
    return Gram(layer.name, layer.shape, depth, None, np.concatenate(sums), X)

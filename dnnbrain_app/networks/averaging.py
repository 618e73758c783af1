"""The activations of a clip, for a network of images: means over its frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dnnbrain_app.networks.extraction import FeatureStore
from dnnbrain_app.networks.layers import Layer
from dnnbrain_app.networks.projection import Projector
from dnnbrain_app.networks.summary import Summary
from dnnbrain_app.records import Array


class AveragingStore:
    r"""Takes features of frames, as `extract_features` gives them, and puts those of clips into a store.

    :math:`X' = W X`, where row i of :math:`W` (n_clips, n_frames) holds the weights of the frames of clip i, which add
    up to 1. So :math:`K' = W K W^\top`, though the inner products of frames are never computed, nor are features of
    more frames than a batch kept. Statistics of channels are those of the averages.

    Parameters
    ----------
    store : FeatureStore
        Open for the clips.
    layers : sequence of Layer
        As `extract_features` has them, which is to know neither of `projector` nor of `n_top`.
    clip : array of int, shape (n_frames,)
        Which clip each frame is of, ascending; every clip has one or more.
    weight : array of shape (n_frames,)
        Share of the frame in its clip.
    projector : Projector, optional
        Applied to the averages.
    n_top : int
        Stimuli to tell for each channel, as `summarise` of `extract_features`.
    """

    def __init__(
        self,
        store: FeatureStore,
        layers: Sequence[Layer],
        clip: Array,
        weight: Array,
        *,
        projector: Projector | None = None,
        n_top: int = 0,
    ) -> None:
        self.blocks, self.read = store.blocks, store.read
        self._store = store
        self._layers = layers
        self._clip = clip
        self._weight = weight.astype(np.float32)[:, None]
        self._projector = projector
        self._n_top = n_top
        self._summary = Summary(layers, n_top)
        self._begun: dict[str, Array] = {}  # of each layer, the sum over those frames of a clip that were there

    def pending(self) -> list[range]:
        """List the frames of each shard of clips that is not there yet."""
        return [range(*np.searchsorted(self._clip, (shard.start, shard.stop))) for shard in self._store.pending()]

    def write(self, layer: str, start_row: int, rows: Array) -> None:
        """Add the features (n, n_features) of some frames of a shard, which come in order."""
        stop = start_row + len(rows)
        clips = self._clip[start_row:stop]
        starts = np.flatnonzero(np.diff(clips, prepend=-1))
        sums = np.add.reduceat(rows * self._weight[start_row:stop], starts)
        if layer in self._begun:
            sums[0] += self._begun.pop(layer)
        if stop < len(self._clip) and self._clip[stop] == clips[-1]:
            self._begun[layer] = sums[-1].copy()
            sums = sums[:-1]
        if len(sums):
            self._put(layer, int(clips[0]), sums)

    def commit(self, rows: range, extras: Mapping[str, Array]) -> None:
        """Declare the shard of these frames whole."""
        found = self._summary.extras() if self._n_top else {}
        self._store.commit(range(self._clip[rows.start], self._clip[rows.stop - 1] + 1), {**extras, **found})
        self._summary = Summary(self._layers, self._n_top)

    def _put(self, layer: str, start_row: int, rows: Array) -> None:
        if self._n_top:
            self._summary.add(layer, start_row, rows)
        self._store.write(layer, start_row, self._projector.apply(layer, rows) if self._projector else rows)

"""What the channels of each layer do over all stimuli, and which stimuli they like best, batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from dnnbrain_app.networks.layers import Layer
from dnnbrain_app.records import Array, ChannelStatistics


@dataclass(frozen=True, slots=True)
class _Channels:
    """A layer's channels over some stimuli.

    Parameters
    ----------
    n_stimuli, n_positions : int
        A channel has n_stimuli x n_positions values.
    mean, scatter : array of shape (n_channels,)
        float64: mean, and sum of squared deviations from it.
    zeros : array of int, shape (n_channels,)
        How many values are exactly 0.
    top_values, top_rows : array of shape (<= n_top, n_channels)
        Highest maxima over positions, falling, and the stimuli that have them; of equals, the first come first.
    """

    n_stimuli: int
    n_positions: int
    mean: Array
    scatter: Array
    zeros: Array
    top_values: Array
    top_rows: Array

    @property
    def n_values(self) -> int:
        return self.n_stimuli * self.n_positions


class Summary:
    """Statistics of a shard of stimuli.

    Parameters
    ----------
    layers : sequence of Layer
        With the shapes of what is added; the first axis is that of the channels.
    n_top : int
        Stimuli to keep for each channel, at least 1.
    """

    def __init__(self, layers: Sequence[Layer], n_top: int) -> None:
        self._shapes = {layer.name: layer.shape for layer in layers}
        self._n_top = n_top
        self._channels: dict[str, _Channels] = {}

    def add(self, layer: str, start_row: int, X: Array) -> None:
        """Take account of some stimuli.

        Parameters
        ----------
        layer : str
            Its name.
        start_row : int
            Row of the first of these stimuli; they come in order.
        X : array of shape (n, n_features)
            float32.
        """
        found = _describe(X.reshape(len(X), self._shapes[layer][0], -1), start_row, self._n_top)
        before = self._channels.get(layer)
        self._channels[layer] = found if before is None else _merge(before, found, self._n_top)

    def extras(self) -> dict[str, Array]:
        """Return what `merge_statistics` needs of the shard: a few arrays, with the channels of all layers in a row."""
        found = [self._channels[layer] for layer in self._shapes]
        return {
            "n_top": np.array(self._n_top),
            "n_stimuli": np.array(found[0].n_stimuli),
            "mean": np.concatenate([channels.mean for channels in found]),
            "scatter": np.concatenate([channels.scatter for channels in found]),
            "zeros": np.concatenate([channels.zeros for channels in found]),
            "top_values": np.concatenate([channels.top_values for channels in found], axis=1),
            "top_rows": np.concatenate([channels.top_rows for channels in found], axis=1),
        }


def merge_statistics(layers: Sequence[Layer], extras: Sequence[Mapping[str, Array]]) -> list[ChannelStatistics]:
    """Put the statistics of all shards together.

    Parameters
    ----------
    layers : sequence of Layer
        As `extract_features` had them.
    extras : sequence of mapping
        What it kept with each shard, in the order of the rows.

    Returns
    -------
    list of ChannelStatistics
        One a layer.
    """
    statistics = []
    start = 0
    for layer in layers:
        channels = slice(start, start + layer.shape[0])
        start = channels.stop
        n_positions = layer.n_features // layer.shape[0]
        found = reduce(
            lambda a, b: _merge(a, b, int(extras[0]["n_top"])), [_cut(shard, channels, n_positions) for shard in extras]
        )
        statistics.append(
            ChannelStatistics(
                layer.name,
                found.n_stimuli,
                found.mean,
                np.sqrt(found.scatter / found.n_values),
                found.top_values[0],
                found.zeros / found.n_values,
                found.top_values,
                found.top_rows,
            )
        )
    return statistics


def _describe(Z: Array, start_row: int, n_top: int) -> _Channels:
    """Look at a batch (n, n_channels, n_positions): float32 over the positions of an image, float64 over images."""
    n, _, n_positions = Z.shape
    pivot = Z[0].mean(axis=1)  # near the mean, so that the squares do not cancel
    deviations = Z - pivot[:, None]
    shift = deviations.sum(axis=2).sum(axis=0, dtype=np.float64) / (n * n_positions)
    squares = np.einsum("ncp,ncp->nc", deviations, deviations).sum(axis=0, dtype=np.float64)
    scatter = np.maximum(squares - n * n_positions * shift**2, 0)
    zeros = (Z == 0).sum(axis=2, dtype=np.int32).sum(axis=0)
    maxima = Z.max(axis=2)
    rows = np.broadcast_to(np.arange(start_row, start_row + n)[:, None], maxima.shape)
    return _Channels(n, n_positions, pivot + shift, scatter, zeros, *_find_top(maxima, rows, n_top))


def _find_top(values: Array, rows: Array, n_top: int) -> tuple[Array, Array]:
    order = np.argsort(-values, axis=0, kind="stable")[:n_top]
    return np.take_along_axis(values, order, axis=0), np.take_along_axis(rows, order, axis=0)


def _merge(first: _Channels, second: _Channels, n_top: int) -> _Channels:
    """Put two sets of stimuli together, those of `first` before those of `second` (Chan, Golub and LeVeque 1983)."""
    n = first.n_values + second.n_values
    difference = second.mean - first.mean
    top = _find_top(
        np.concatenate([first.top_values, second.top_values]), np.concatenate([first.top_rows, second.top_rows]), n_top
    )
    return _Channels(
        first.n_stimuli + second.n_stimuli,
        first.n_positions,
        first.mean + difference * (second.n_values / n),
        first.scatter + second.scatter + difference**2 * (first.n_values * second.n_values / n),
        first.zeros + second.zeros,
        *top,
    )


def _cut(shard: Mapping[str, Array], channels: slice, n_positions: int) -> _Channels:
    return _Channels(
        int(shard["n_stimuli"]),
        n_positions,
        shard["mean"][channels],
        shard["scatter"][channels],
        shard["zeros"][channels],
        shard["top_values"][:, channels],
        shard["top_rows"][:, channels],
    )

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from torch import nn

from dnnbrain_app.networks.averaging import AveragingStore
from dnnbrain_app.networks.extraction import extract_features, make_grams
from dnnbrain_app.networks.layers import Layer, choose_layers, list_layers
from dnnbrain_app.networks.projection import Projector
from dnnbrain_app.networks.summary import merge_statistics
from dnnbrain_app.records import StimulusSet

COUNTS = [3, 1, 7, 2, 1, 5]  # frames of each clip
N_CLIPS, N_FRAMES = len(COUNTS), sum(COUNTS)
LAYERS = [Layer("maps", "maps", 1, (4, 3, 2), 24, 0, "Conv2d"), Layer("units", "units", 1, (5,), 5, 1, "Linear")]


class MemoryStore:
    """The least that extraction asks of a store; rows are NaN until they are written."""

    def __init__(self, layers: list[Layer], shard: int = 100, n: int = N_CLIPS) -> None:
        self.X = {layer.name: np.full((n, layer.n_features), np.nan, np.float32) for layer in layers}
        self.shards = [range(start, min(start + shard, n)) for start in range(0, n, shard)]
        self.kept: dict[range, dict[str, np.ndarray]] = {}

    def pending(self) -> list[range]:
        return [shard for shard in self.shards if shard not in self.kept]

    def write(self, layer: str, start_row: int, rows: np.ndarray) -> None:
        shard = self.pending()[0]
        assert shard.start <= start_row
        assert start_row + len(rows) <= shard.stop
        assert np.isnan(self.X[layer][start_row : start_row + len(rows)]).all()  # each row once
        self.X[layer][start_row : start_row + len(rows)] = rows

    def commit(self, rows: range, extras: dict[str, np.ndarray]) -> None:
        assert all(np.isfinite(X[rows.start : rows.stop]).all() for X in self.X.values())
        self.kept[rows] = dict(extras)

    def blocks(self, layer: str, width: int) -> Iterator[np.ndarray]:
        for start in range(0, self.X[layer].shape[1], width):
            yield self.X[layer][:, start : start + width]

    def read(self, layer: str) -> np.ndarray:
        return self.X[layer]


@pytest.fixture
def clip() -> np.ndarray:
    return np.repeat(np.arange(N_CLIPS), COUNTS)


@pytest.fixture
def weight(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    durations = rng.uniform(0.2, 3, N_FRAMES)
    return durations / np.bincount(clip, durations)[clip]


@pytest.fixture
def features(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {layer.name: rng.standard_normal((N_FRAMES, layer.n_features)).astype(np.float32) for layer in LAYERS}


def average(X: np.ndarray, clip: np.ndarray, weight: np.ndarray) -> np.ndarray:
    W = np.zeros((N_CLIPS, N_FRAMES))
    W[clip, np.arange(N_FRAMES)] = weight
    return W @ X


def feed(store: AveragingStore, features: dict[str, np.ndarray], batch: int) -> None:
    """As `extract_features` does it."""
    for shard in store.pending():
        for start in range(shard.start, shard.stop, batch):
            for layer, X in features.items():
                store.write(layer, start, X[start : min(start + batch, shard.stop)])
        store.commit(shard, {})


@pytest.mark.parametrize("shard", [100, 4, 1])
@pytest.mark.parametrize("batch", [1, 2, 4, 100])
def test_averages_whatever_the_batches(
    clip: np.ndarray, weight: np.ndarray, features: dict[str, np.ndarray], batch: int, shard: int
) -> None:
    inner = MemoryStore(LAYERS, shard)
    store = AveragingStore(inner, LAYERS, clip, weight)
    assert [row for frames in store.pending() for row in frames] == list(range(N_FRAMES))
    feed(store, features, batch)
    assert not store.pending()
    for layer, X in features.items():
        assert np.allclose(inner.X[layer], average(X, clip, weight), atol=1e-6)


def test_only_what_is_missing_is_asked_for(
    clip: np.ndarray, weight: np.ndarray, features: dict[str, np.ndarray]
) -> None:
    inner = MemoryStore(LAYERS, shard=2)
    inner.kept[range(2, 4)] = {}
    store = AveragingStore(inner, LAYERS, clip, weight)
    assert store.pending() == [range(4), range(13, 19)]
    feed(store, features, 4)
    for layer, X in features.items():
        there = np.isfinite(inner.X[layer]).all(axis=1)
        assert there.tolist() == [True, True, False, False, True, True]
        assert np.allclose(inner.X[layer][there], average(X, clip, weight)[there], atol=1e-6)


@pytest.mark.parametrize("shard", [100, 4])
def test_statistics_are_those_of_the_averages(
    clip: np.ndarray, weight: np.ndarray, features: dict[str, np.ndarray], shard: int
) -> None:
    features["maps"][:, :6] = 0  # the first channel is silent
    inner = MemoryStore(LAYERS, shard)
    feed(AveragingStore(inner, LAYERS, clip, weight, n_top=3), features, 4)
    maps, units = merge_statistics(LAYERS, [inner.kept[rows] for rows in inner.shards])
    Z = average(features["maps"], clip, weight).reshape(N_CLIPS, 4, 6)
    assert maps.n_stimuli == N_CLIPS
    assert np.allclose(maps.mean, Z.mean(axis=(0, 2)), atol=1e-6)
    assert np.allclose(maps.sd, Z.std(axis=(0, 2)), atol=1e-6)
    assert maps.zeros.tolist() == [1, 0, 0, 0]
    order = np.argsort(-Z.max(axis=2), axis=0)[:3]
    assert np.array_equal(maps.top_stimuli[:, 1:], order[:, 1:])
    assert np.allclose(maps.top_values, np.take_along_axis(Z.max(axis=2), order, axis=0), atol=1e-6)
    assert np.allclose(units.maximum, average(features["units"], clip, weight).max(axis=0), atol=1e-6)


def test_averages_are_projected(clip: np.ndarray, weight: np.ndarray, features: dict[str, np.ndarray]) -> None:
    projector = Projector(10, seed=1)
    kept = projector.plan(LAYERS)
    inner = MemoryStore(kept)
    feed(AveragingStore(inner, LAYERS, clip, weight, projector=projector, n_top=2), features, 4)
    X = average(features["maps"], clip, weight).astype(np.float32)
    assert np.allclose(inner.X["maps"], projector.apply("maps", X), atol=1e-5)
    assert np.allclose(inner.X["units"], average(features["units"], clip, weight), atol=1e-6)
    assert merge_statistics(LAYERS, [inner.kept[range(N_CLIPS)]])[0].mean.shape == (4,)  # not of the projection


def test_grams_are_those_of_the_weighted_frames(make_network, write_stimuli, read_image, clip, weight, rng) -> None:
    r""":math:`K' = W K W^\top`, where K is made of every frame by itself."""
    network = make_network(nn.Sequential(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.AvgPool2d(4), nn.Conv2d(6, 8, 3)))
    layers = choose_layers(list_layers(network), ("all",), ())
    frames: StimulusSet = write_stimuli([rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(N_FRAMES)])
    options = {"batch_size": 4, "device": "cpu", "precision": "float32"}
    plain = MemoryStore(layers, n=N_FRAMES)
    extract_features(network, layers, frames, read_image, store=plain, **options)
    store = MemoryStore(layers)
    extract_features(network, layers, frames, read_image, store=AveragingStore(store, layers, clip, weight), **options)
    W = np.zeros((N_CLIPS, N_FRAMES))
    W[clip, np.arange(N_FRAMES)] = weight
    for gram in make_grams(store, layers, keep_kernel=True):
        X = plain.X[gram.layer].astype(float)
        assert np.allclose(gram.K, W @ (X @ X.T) @ W.T, rtol=1e-4)
        assert np.allclose(gram.row_sums, W @ X.sum(axis=1), rtol=1e-4, atol=1e-4)

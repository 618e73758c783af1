"""Against numpy on all stimuli at once."""

from __future__ import annotations

import numpy as np
import pytest

from dnnbrain_app.networks.layers import Layer
from dnnbrain_app.networks.summary import Summary, merge_statistics

N = 23
SHAPES = {"conv": (6, 5, 4), "fc": (9,), "tokens": (3, 7, 1)}
LAYERS = [Layer(name, name, 1, shape, int(np.prod(shape)), i, "") for i, (name, shape) in enumerate(SHAPES.items())]


@pytest.fixture
def features(rng) -> dict[str, np.ndarray]:
    """Rectified values; whole numbers in one layer, so that there are ties."""
    values = {name: rng.standard_normal((N, *shape)).astype(np.float32) for name, shape in SHAPES.items()}
    values["conv"] = np.maximum(values["conv"], 0)
    values["fc"] = np.floor(2 * values["fc"])
    return values


def summarise(features, n_top: int, shards: list[range], batch: int):
    extras = []
    for shard in shards:
        summary = Summary(LAYERS, n_top)
        for start in range(shard.start, shard.stop, batch):
            rows = slice(start, min(start + batch, shard.stop))
            for name, X in features.items():
                summary.add(name, start, X[rows].reshape(rows.stop - rows.start, -1))
        extras.append(summary.extras())
    return merge_statistics(LAYERS, extras)


@pytest.mark.parametrize("n_top", [1, 4, 100])
@pytest.mark.parametrize(
    ("shards", "batch"),
    [
        ([range(N)], N),
        ([range(N)], 5),
        ([range(10), range(10, 20), range(20, N)], 4),
        ([range(i, i + 1) for i in range(N)], 1),
    ],
    ids=["at once", "batches", "shards", "single"],
)
def test_equals_numpy(features, n_top, shards, batch):
    found = summarise(features, n_top, shards, batch)
    assert [layer.layer for layer in found] == list(SHAPES)
    for layer in found:
        Z = features[layer.layer].reshape(N, len(layer.mean), -1).astype(np.float64)
        assert layer.n_stimuli == N
        np.testing.assert_allclose(layer.mean, Z.mean((0, 2)), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(layer.sd, Z.std((0, 2)), rtol=1e-6)
        np.testing.assert_array_equal(layer.maximum, Z.max((0, 2)))
        np.testing.assert_allclose(layer.zeros, (Z == 0).mean((0, 2)), rtol=1e-12)
        order = np.argsort(-Z.max(2), axis=0, kind="stable")[:n_top]  # of equals, the first
        np.testing.assert_array_equal(layer.top_stimuli, order)
        np.testing.assert_array_equal(layer.top_values, np.take_along_axis(Z.max(2), order, axis=0))


def test_silent_channels_like_the_first_stimuli(features):
    features["conv"][:] = 0
    conv, *_ = summarise(features, 3, [range(10), range(10, N)], 4)
    np.testing.assert_array_equal(conv.top_stimuli, np.repeat([[0], [1], [2]], 6, axis=1))
    assert (conv.zeros == 1).all()
    assert (conv.sd == 0).all()


def test_a_large_mean_does_not_hide_the_spread(features):
    """Squares of float32 values would have lost it."""
    features["conv"] = features["conv"] + np.float32(3000)
    conv, *_ = summarise(features, 1, [range(10), range(10, N)], 4)
    exact = features["conv"].astype(np.float64)
    np.testing.assert_allclose(conv.sd, exact.std((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(conv.mean, exact.mean((0, 2, 3)), rtol=1e-9)

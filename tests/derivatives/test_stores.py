from __future__ import annotations

import dataclasses
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

from dnnbrain_app.derivatives.stores import FeatureStore, grams_key, load_grams, save_grams, write_activations
from dnnbrain_app.errors import CannotWriteError
from dnnbrain_app.records import Activations, Gram, StimulusSet

STIMULI = StimulusSet(("a.png", "b.png"), (Path("a.png"), Path("b.png")), ("1" * 64, "2" * 64))
IDENTITY = {"name": "alexnet", "torchvision": "0.29"}
KEY = grams_key(STIMULI, IDENTITY, ["fc"])


@pytest.fixture
def activations(rng) -> Activations:
    X, wide = rng.standard_normal((2, 2)), rng.standard_normal((2, 12))
    grams = (
        Gram("conv", (3, 2, 2), 0, wide @ wide.T, wide.sum(1)),
        Gram("fc", (2,), 1, X @ X.T, X.sum(1), X.astype(np.float32)),
    )
    return Activations("alexnet", STIMULI.ids, grams, {"Name": "alexnet:IMAGENET1K_V1", "SHA256": "ab"})


@pytest.mark.parametrize("memory", [10**6, 500, 0], ids=["memory", "both", "disk"])
def test_features_come_back(tmp_path, rng, memory):
    values = {"conv": rng.standard_normal((5, 24)).astype(np.float32), "fc": rng.random((5, 3)).astype(np.float32)}
    folder = tmp_path / "work"
    with FeatureStore(folder, memory) as store:
        store.open("conv", (6, 2, 2), 5)
        store.open("fc", (3,), 5)
        assert folder.exists() == (memory < 540)
        for name, X in values.items():
            store.write(name, 3, X[3:])
            store.write(name, 0, X[:3])
            np.testing.assert_array_equal(store.read(name), X)
            assert [block.shape[1] for block in store.blocks(name, 10)] == ([10, 10, 4] if name == "conv" else [3])
            np.testing.assert_array_equal(np.hstack(list(store.blocks(name, 10))), X)
        assert store.layers == ("conv", "fc")
        assert store.shape("conv") == (6, 2, 2)
    assert not folder.exists() or not list(folder.iterdir())


def test_scratch_goes_also_after_an_error(tmp_path):
    def fail() -> None:
        with FeatureStore(tmp_path, memory=0) as store:
            store.open("fc", (3,), 5)
            assert list(tmp_path.iterdir())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not list(tmp_path.iterdir())


def test_a_layer_too_big_for_the_disk(tmp_path):
    message = r"layer conv1 needs .* GB of scratch space, but .* choose fewer"
    with FeatureStore(tmp_path, memory=0) as store, pytest.raises(CannotWriteError, match=message):
        store.open("conv1", (64, 10**4, 10**4), 10**6)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with FeatureStore(tmp_path / "file" / "work", memory=0) as store, pytest.raises(CannotWriteError, match="work"):
        store.open("fc", (3,), 5)


def test_the_key_follows_what_counts():
    others = [
        grams_key(STIMULI, IDENTITY, ["fc", "conv"]),
        grams_key(STIMULI, IDENTITY | {"torchvision": "0.30"}, ["fc"]),
        grams_key(dataclasses.replace(STIMULI, digests=STIMULI.digests[::-1]), IDENTITY, ["fc"]),
        grams_key(dataclasses.replace(STIMULI, ids=STIMULI.ids[::-1]), IDENTITY, ["fc"]),
    ]
    assert len({KEY, *others}) == 5
    elsewhere = dataclasses.replace(STIMULI, paths=(Path("/x/a.png"), Path("/x/b.png")))
    assert grams_key(elsewhere, dict(reversed(IDENTITY.items())), ("fc",)) == KEY


def test_grams_come_back(tmp_path, activations):
    assert load_grams(tmp_path, KEY) is None
    path = save_grams(tmp_path, KEY, activations)
    assert path.relative_to(tmp_path) == Path(KEY[:2], f"{KEY}.npz")
    loaded = load_grams(tmp_path, KEY)
    assert loaded is not None
    assert (loaded.network, loaded.stimuli, loaded.provenance) == ("alexnet", STIMULI.ids, activations.provenance)
    for ours, theirs in zip(activations.layers, loaded.layers, strict=True):
        assert (ours.layer, ours.shape, ours.depth) == (theirs.layer, theirs.shape, theirs.depth)
        np.testing.assert_array_equal(ours.K, theirs.K)
        np.testing.assert_array_equal(ours.row_sums, theirs.row_sums)
        assert (ours.X is None) == (theirs.X is None)
    np.testing.assert_array_equal(activations.layers[1].X, loaded.layers[1].X)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    place = content.find(b"K0.npy") + 140
    content[place] ^= 255
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def pickled(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, about=np.array([{"key": KEY}], dtype=object))


def other(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, about=np.array('{"key": "00"}'))


@pytest.mark.parametrize("damage", [truncate, flip, empty, pickled, other])
def test_damaged_entries_are_computed_again(tmp_path, activations, caplog, damage):
    damage(save_grams(tmp_path, KEY, activations))
    with caplog.at_level(logging.WARNING):
        assert load_grams(tmp_path, KEY) is None
    assert "is damaged" in caplog.text
    save_grams(tmp_path, KEY, activations)
    assert load_grams(tmp_path, KEY) is not None


def test_many_writers_and_readers(tmp_path, activations, caplog):
    def write_and_read(_):
        save_grams(tmp_path, KEY, activations)
        return load_grams(tmp_path, KEY) is not None

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(write_and_read, range(40)))
    assert not caplog.text
    assert [path.name for path in tmp_path.rglob("*.*")] == [f"{KEY}.npz"]


def test_activations_have_the_originals_layout(tmp_path, rng):
    shapes = {"features.0": (70, 12, 12), "vit.block": (16, 5, 1), "fc:2": (9,)}
    path = tmp_path / "stimuli" / "model-x_desc-layers.act.h5"
    values = {}
    with FeatureStore(tmp_path / "work", memory=10**6) as store:
        for name, shape in shapes.items():
            store.open(name, shape, 40)
            values[name] = rng.standard_normal((40, np.prod(shape))).astype(np.float32)
            store.write(name, 0, values[name])
        ids = [f"bild_{i}_ü.png" for i in range(40)]
        about = {"stimuli": ids, "network": "x", "sidecar": {"Description": "activations"}}
        written = write_activations(path, store, list(shapes), **about)
        first = path.read_bytes()
        write_activations(path, store, list(shapes), **about)
    assert path.read_bytes() == first
    assert [file.name for file in written] == [path.name, "model-x_desc-layers.json"]
    assert '"activations"' in written[1].read_text()
    with h5py.File(path) as file:
        assert set(file) == set(shapes)
        assert file.attrs["network"] == "x"
        assert list(file.attrs["stimuli"]) == ids
        assert file["features.0"].chunks == (32, 56, 12, 12)
        assert {name: file[name].shape for name in file} == {
            "features.0": (40, 70, 12, 12),
            "vit.block": (40, 16, 5, 1),
            "fc:2": (40, 9, 1, 1),
        }
        for name, X in values.items():
            np.testing.assert_array_equal(file[name][:].reshape(40, -1), X)


def test_many_stimuli_fit_the_attributes(tmp_path):
    ids = [f"a_rather_long_name_of_a_stimulus_{i:05d}.png" for i in range(12_000)]
    with FeatureStore(tmp_path, memory=10**6) as store:
        store.open("fc", (1,), len(ids))
        path, _ = write_activations(tmp_path / "x.act.h5", store, ["fc"], stimuli=ids, network="x", sidecar={})
    with h5py.File(path) as file:
        assert list(file.attrs["stimuli"]) == ids

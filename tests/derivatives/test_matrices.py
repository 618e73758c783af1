from __future__ import annotations

import json
import time

import h5py
import numpy as np
import pytest
from scipy.spatial.distance import pdist

from dnnbrain_app.derivatives.matrices import read_rdms, write_rdms
from dnnbrain_app.errors import BadDataError, CannotWriteError, InputOutputError, MissingInputError
from dnnbrain_app.records import Rdm

ITEMS = tuple(f"objects/image {i:02d}.jpg" for i in range(12))


@pytest.fixture
def rdms(rng):
    names = ("V1", "é/b", "IT (both)")  # not in the order of the alphabet
    return [Rdm(name, pdist(rng.standard_normal((12, 40)), "correlation"), ITEMS) for name in names]


@pytest.mark.parametrize("kind", ["bRDM", "dRDM"])
def test_rdms_come_back_as_they_were(tmp_path, rdms, kind):
    path = tmp_path / "sub-01_stat-correlation_relmat.h5"
    assert write_rdms(path, rdms, {"Description": "d"}, kind) == [path, path.with_suffix(".json")]
    assert json.loads(path.with_suffix(".json").read_text()) == {"Description": "d"}
    back = read_rdms(path)
    assert [rdm.name for rdm in back] == [rdm.name for rdm in rdms]
    for read, written in zip(back, rdms, strict=True):
        assert np.array_equal(read.dissimilarities, written.dissimilarities)
        assert read.items == ITEMS
        assert read.metric == "correlation"


@pytest.mark.parametrize(("kind", "shape"), [("bRDM", (66,)), ("dRDM", (1, 66))])
def test_the_layout_is_the_originals(tmp_path, rdms, kind, shape):
    write_rdms(tmp_path / "a.h5", rdms, {}, kind)
    with h5py.File(tmp_path / "a.h5") as file:
        assert file.attrs["type"] == kind
        assert set(file) == {"V1", "é|b", "IT (both)"}
        for dataset in file.values():
            assert dataset.shape == shape
            assert dataset.dtype == np.float64
            assert dataset.compression == "gzip"


def test_a_file_of_the_original_can_be_read(tmp_path, rng):
    values = rng.random((1, 6))
    with h5py.File(tmp_path / "a.rdm.h5", "w") as file:
        file.attrs["type"] = "dRDM"
        file.create_dataset("fc3", data=values, compression="gzip")
        file.create_dataset("conv1", data=values + 1, compression="gzip")
    first, second = read_rdms(tmp_path / "a.rdm.h5")
    assert (first.name, second.name) == ("conv1", "fc3")
    assert first.items == ("1", "2", "3", "4")
    assert first.metric == "unknown"
    assert np.array_equal(second.dissimilarities, values[0])


def test_same_numbers_same_bytes(tmp_path, rdms):
    write_rdms(tmp_path / "a.h5", rdms, {}, "bRDM")
    time.sleep(1.1)  # HDF5 keeps times in seconds, if it keeps them
    write_rdms(tmp_path / "b.h5", rdms, {}, "bRDM")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_many_items_with_long_names(tmp_path):
    items = tuple(f"{'long' * 20}/{i}.jpg" for i in range(1500))
    write_rdms(tmp_path / "a.h5", [Rdm("V1", np.zeros(1500 * 1499 // 2), items)], {}, "bRDM")
    assert read_rdms(tmp_path / "a.h5")[0].items == items


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rdms: rdms[:0], "no RDM"),
        (lambda rdms: [*rdms, rdms[0]], "two RDMs are named 'V1'"),
        (lambda rdms: [*rdms, Rdm("x", rdms[0].dissimilarities, ITEMS[::-1])], "V1 and x differ"),
        (lambda rdms: [*rdms, Rdm("x", rdms[0].dissimilarities, ITEMS, "euclidean")], "V1 and x differ"),
    ],
)
def test_rdms_must_belong_together(tmp_path, rdms, change, words):
    with pytest.raises(BadDataError, match=words):
        write_rdms(tmp_path / "a.h5", change(rdms), {}, "bRDM")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error_not_a_crash(small_disk, rng):
    rdm = Rdm("V1", rng.random(700 * 699 // 2), tuple(map(str, range(700))))
    with pytest.raises(CannotWriteError, match="No space left"):
        write_rdms(small_disk / "a.h5", [rdm], {}, "bRDM")
    assert not list(small_disk.iterdir())


def test_what_cannot_be_read_says_so(tmp_path):
    with pytest.raises(MissingInputError, match="does not exist"):
        read_rdms(tmp_path / "a.h5")
    (tmp_path / "a.h5").write_bytes(b"no HDF5")
    with pytest.raises(InputOutputError, match="cannot be read"):
        read_rdms(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["a"] = np.zeros(3)
    with pytest.raises(BadDataError, match="holds no RDMs"):
        read_rdms(tmp_path / "b.h5")
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.attrs["type"] = "dRDM"
        file["conv1"] = np.zeros((64, 3))
    with pytest.raises(BadDataError, match="conv1 holds 64 RDMs"):
        read_rdms(tmp_path / "c.h5")

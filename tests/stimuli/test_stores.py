from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dnnbrain_app.errors import BadDataError, MissingInputError
from dnnbrain_app.stimuli.images import read_image
from dnnbrain_app.stimuli.sets import find_missing, find_stimuli
from dnnbrain_app.stimuli.stores import read_row, split_store


@pytest.fixture
def pictures(rng: np.random.Generator) -> np.ndarray:
    """Seven pictures of 4 x 5 pixels."""
    return rng.integers(0, 256, (7, 4, 5, 3), dtype=np.uint8)


@pytest.fixture
def store(folder: Path, pictures: np.ndarray) -> Path:
    path = folder / "nsd_stimuli.hdf5"
    with h5py.File(path, "w") as file:
        file["imgBrick"] = pictures
        file.create_dataset("small/packed", data=pictures[..., :1], chunks=(1, 4, 5, 1), compression="gzip")
        file["small/grey"] = pictures[..., 1]
    return path


def test_names_are_split(tmp_path: Path) -> None:
    store = tmp_path / "nsd.HDF5"
    assert split_store(store / "imgBrick" / "46002") == (store, "imgBrick", 46002)
    assert split_store(store / "a" / "b" / "007") == (store, "a/b", 7)
    assert split_store(tmp_path / "a.png") is None
    assert split_store(store) is None
    folder = tmp_path / "set.h5"
    folder.mkdir()
    assert split_store(folder / "faces" / "1") is None


@pytest.mark.parametrize("rest", ["46002", "imgBrick", "imgBrick/-1", "imgBrick/1.0", "imgBrick/²", "x/" + "9" * 30])
def test_names_that_are_no_row(tmp_path: Path, rest: str) -> None:
    with pytest.raises(BadDataError, match=r"nsd\.h5.*should name a dataset and a row, from 0: nsd\.h5/imgBrick/0"):
        split_store(tmp_path / "nsd.h5" / rest)


def test_rows_are_pictures(store: Path, pictures: np.ndarray) -> None:
    for row in (0, 6):
        np.testing.assert_array_equal(np.asarray(read_image(store / "imgBrick" / str(row))), pictures[row])
    for name, channel in (("small/packed", 0), ("small/grey", 1)):
        image = read_image(store / name / "2")
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), np.repeat(pictures[2, ..., channel, None], 3, axis=2))


def test_only_the_row_is_read(store: Path, pictures: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    plainly = h5py.Dataset.__getitem__
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda self, key: asked.append(key) or plainly(self, key))
    np.testing.assert_array_equal(read_row(store, "imgBrick", 3), pictures[3])
    assert asked == [3]


def test_rows_are_stimuli(folder: Path, store: Path, pictures: np.ndarray) -> None:
    names = ["nsd_stimuli.hdf5/imgBrick/5", "stimuli/nsd_stimuli.hdf5\\imgBrick\\2", "NSD_stimuli.hdf5/small/packed/5"]
    found = find_stimuli([*names, "a.JPEG"], folder)
    paths = dict(zip(found.ids, found.paths, strict=True))
    assert [paths[name] for name in names] == [store / "imgBrick/5", store / "imgBrick/2", store / "small/packed/5"]
    digests = dict(zip(found.ids, found.digests, strict=True))
    assert digests[names[0]] == hashlib.sha256(b"(4, 5, 3)" + pictures[5].tobytes()).hexdigest()
    assert len(set(found.digests)) == 4
    assert find_missing([*names, "b.hdf5/imgBrick/1"], folder) == ["b.hdf5/imgBrick/1"]


def test_equal_pictures_have_equal_digests(folder: Path, store: Path) -> None:
    with h5py.File(store, "a") as file:
        file["imgBrick"][4] = file["imgBrick"][1]
    _, places = find_stimuli([f"nsd_stimuli.hdf5/imgBrick/{row}" for row in (0, 1, 4)], folder).distinct()
    assert places.tolist() == [0, 1, 1]


def test_rows_are_read_again_when_the_file_has_changed(
    folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 10**10)
    names, known = [f"nsd_stimuli.hdf5/imgBrick/{row}" for row in (0, 1)], {}
    first = find_stimuli(names, folder, known=known).digests
    assert len(known) == 2
    with monkeypatch.context() as patch:
        patch.setattr(h5py, "File", None)  # an attempt to open it would fail
        assert find_stimuli(names, folder, known=known).digests == first
    with h5py.File(store, "a") as file:
        file["imgBrick"][1] = 0
    os.utime(store, (1, 1))
    again = find_stimuli(names, folder, known=known).digests
    assert (again[0] == first[0], again[1] == first[1]) == (True, False)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("imgbrick/1", ["has no dataset 'imgbrick'", "there are: imgBrick, small/grey, small/packed"]),
        ("small/1", ["has no dataset 'small'"]),
        ("imgBrick/3/1", ["has no dataset 'imgBrick/3'"]),
        ("imgBrick/7", ["has 7 rows, counted from 0; there is no row 7"]),
        ("float/0", ["'float' is of type float32 and shape (2, 4, 5, 3)", "uint8"]),
        ("first/0", ["shape (2, 3, 4, 5)", "(n, height, width, 3)"]),
        ("matrix/0", ["shape (2, 4)"]),
        ("nothing/0", ["shape (2, 0, 5)"]),
        ("text/0", ["is of type object"]),
        ("narrow/0", ["narrow/0: 300 x 2 pixels", "100 times"]),
        ("virtual/0", ["'virtual' lies in another file"]),
        ("external/0", ["'external' lies in another file"]),
        ("raw/0", ["'raw' lies in another file"]),
        ("broken/0", ["has no dataset 'broken'"]),
    ],
)
def test_rows_that_cannot_be(folder: Path, store: Path, pictures: np.ndarray, name: str, parts: list[str]) -> None:
    outside = folder.parent / "secret.h5"
    shutil.copy(store, outside)
    with h5py.File(store, "a") as file:
        if not name.startswith(("imgbrick", "small")):
            file["float"] = pictures[:2].astype(np.float32)
            file["first"] = np.zeros((2, 3, 4, 5), np.uint8)
            file["matrix"] = np.zeros((2, 4), np.uint8)
            file["nothing"] = np.zeros((2, 0, 5), np.uint8)
            file["text"] = ["a", "b"]
            file["narrow"] = np.zeros((1, 300, 2), np.uint8)
            layout = h5py.VirtualLayout((7, 4, 5, 3), np.uint8)
            layout[:] = h5py.VirtualSource(outside, "imgBrick", (7, 4, 5, 3))
            file.create_virtual_dataset("virtual", layout)
            file["external"] = h5py.ExternalLink(outside, "imgBrick")
            file.create_dataset("raw", (7, 4, 5, 3), np.uint8, external=[(str(outside), 0, 420)])
            file["broken"] = h5py.ExternalLink("nowhere.h5", "imgBrick")
    with pytest.raises(BadDataError) as caught:
        find_stimuli([f"nsd_stimuli.hdf5/{name}", "a.JPEG"], folder)
    assert all(part in str(caught.value) for part in ["nsd_stimuli.hdf5", *parts]), str(caught.value)


def test_files_that_are_no_stores(folder: Path, store: Path) -> None:
    (folder / "text.h5").write_text("hello")
    (folder / "cut.h5").write_bytes(store.read_bytes()[:600])
    for name in ("text.h5", "cut.h5"):
        with pytest.raises(BadDataError, match=rf"{name}: cannot be read as HDF5"):
            find_stimuli([f"{name}/imgBrick/0", "a.JPEG"], folder)
    with pytest.raises(BadDataError, match=r"nsd_stimuli\.hdf5: not an image"):
        find_stimuli(["nsd_stimuli.hdf5", "a.JPEG"], folder)
    with pytest.raises(MissingInputError, match=r"gone\.h5: does not exist"):
        read_row(folder / "gone.h5", "imgBrick", 0)


def test_stores_outside_are_refused(folder: Path, store: Path) -> None:
    store.rename(folder.parent / "out.h5")
    (folder / "link.h5").symlink_to(folder.parent / "out.h5")
    for name in ("../out.h5/imgBrick/0", "link.h5/imgBrick/0"):
        with pytest.raises(BadDataError, match="leads out of the folder"):
            find_stimuli([name, "a.JPEG"], folder)

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from dnnbrain_app.derivatives import activations
from dnnbrain_app.derivatives.activations import fill_store, identify_file, list_shapes, write_activations
from dnnbrain_app.derivatives.features import FeatureStore
from dnnbrain_app.errors import (
    BadDataError,
    CannotWriteError,
    InputOutputError,
    MissingInputError,
    UnknownNameError,
)

SHAPES = {"features.0": (70, 12, 12), "vit/block": (16, 5, 1), "clip": (4, 2, 3, 5), "fc:2": (9,)}
N = 40
IDS = tuple(f"bild_{i}_ü.png" for i in range(N))


@pytest.fixture
def values(rng):
    return {name: rng.standard_normal((N, np.prod(shape))).astype(np.float32) for name, shape in SHAPES.items()}


@pytest.fixture
def store(tmp_path, values):
    with FeatureStore(tmp_path / "work", memory=10**7) as store:
        put(store, SHAPES, values)
        yield store


def put(store: FeatureStore, shapes, values) -> None:
    store.open(shapes, len(next(iter(values.values()))))
    for rows in store.pending():
        for name, X in values.items():
            store.write(name, rows.start, X[rows.start : rows.stop])
        store.commit(rows, {})


@pytest.fixture
def ours(tmp_path, store) -> Path:
    path = tmp_path / "x.act.h5"
    write_activations(path, store, store.layers, stimuli=IDS, rows=range(N), network="x", sidecar={})
    return path


@pytest.fixture
def theirs(tmp_path, rng) -> Path:
    """As DNNBrain 1.0 writes: no attributes, and the layers in the order of the forward pass."""
    path = tmp_path / "theirs.act.h5"
    with h5py.File(path, "w") as file:
        for name, shape in {"conv1": (3, 7, 7), "conv10": (4, 2, 2), "fc3": (10, 1, 1), "Fc1": (2, 1, 1)}.items():
            file.create_dataset(name, data=rng.random((6, *shape)).astype(np.float32), compression="gzip")
    return path


def fill(tmp_path: Path, path: Path, layers=("all",), stimuli=IDS, **more) -> dict[str, np.ndarray]:
    with FeatureStore(tmp_path / "filled", 0, shard=3) as store:
        fill_store(path, store, layers, stimuli, **more)
        filled = {name: np.array(store.read(name)) for name in store.layers}
        store.remove()
    return filled


@pytest.mark.parametrize("memory", [10**7, 0])
def test_activations_have_the_originals_layout(tmp_path, values, memory):
    path = tmp_path / "stimuli" / "model-x_desc-layers.act.h5"
    with FeatureStore(tmp_path / "work", memory, shard=7) as store:
        put(store, SHAPES, values)
        about = {"stimuli": IDS, "rows": np.arange(N), "network": "x", "sidecar": {"Description": "activations"}}
        written = write_activations(path, store, list(SHAPES), **about)
        first = path.read_bytes()
        write_activations(path, store, list(SHAPES), **about)
    assert path.read_bytes() == first
    assert [file.name for file in written] == [path.name, "model-x_desc-layers.json"]
    assert json.loads(written[1].read_text()) == {"Description": "activations"}
    with h5py.File(path) as file:
        assert dict(file.attrs.items()).keys() == {"network", "stimuli", "layers"}
        assert file.attrs["network"] == "x"
        assert tuple(file.attrs["stimuli"]) == IDS
        assert list(file.attrs["layers"]) == list(SHAPES)
        assert file["features.0"].chunks == (32, 56, 12, 12)
        assert {name: (file[name].shape, file[name].dtype) for name in file} == {
            "clip": ((N, 4, 6, 5), np.float32),
            "features.0": ((N, 70, 12, 12), np.float32),
            "vit|block": ((N, 16, 5, 1), np.float32),
            "fc:2": ((N, 9, 1, 1), np.float32),
        }
        for name, X in values.items():
            np.testing.assert_array_equal(file[name.replace("/", "|")][:].reshape(N, -1), X)


def test_copies_are_written_out(tmp_path, store, values, monkeypatch):
    monkeypatch.setattr(activations, "_PIECE", 1)  # chunk by chunk
    rows = [5, 6, 7, 5, 5, 0, 1, 39] * 9
    ids = [f"s{i}" for i in range(len(rows))]
    path, _ = write_activations(tmp_path / "x.act.h5", store, ["fc:2"], stimuli=ids, rows=rows, network="x", sidecar={})
    with h5py.File(path) as file:
        assert list(file) == ["fc:2"]
        np.testing.assert_array_equal(file["fc:2"][:, :, 0, 0], values["fc:2"][rows])


def test_many_stimuli_fit_the_attributes(tmp_path):
    ids = [f"a_rather_long_name_of_a_stimulus_{i:05d}.png" for i in range(12_000)]
    X = np.arange(12_000, dtype=np.float32)[:, None]
    with FeatureStore(tmp_path / "work", memory=10**6, shard=20_000) as store:
        put(store, {"fc": (1,)}, {"fc": X})
        about = {"stimuli": ids, "rows": range(12_000), "network": "x", "sidecar": {}}
        path, _ = write_activations(tmp_path / "x.act.h5", store, ["fc"], **about)
    with h5py.File(path) as file:
        assert list(file.attrs["stimuli"]) == ids
    np.testing.assert_array_equal(fill(tmp_path, path, stimuli=ids[:2] + ids[-1:])["fc"][:, 0], [0, 1, 11_999])


# In another process: HDF5 that could not write crashes when the process ends.
FAILING = """
import resource, sys
from pathlib import Path
import numpy as np
from dnnbrain_app.derivatives.activations import write_activations
from dnnbrain_app.derivatives.features import FeatureStore
from dnnbrain_app.errors import DnnbrainError

path, limits = Path(sys.argv[1]), [int(limit) for limit in sys.argv[2:]]
X = np.random.default_rng(0).random((100, 4000), dtype=np.float32)
with FeatureStore(Path("unused"), 10**7) as store:
    store.open({"a": (40, 10, 5), "b": (40, 10, 5)}, 100)
    for layer in "ab":
        store.write(layer, 0, X[:, :2000])
    store.commit(range(100), {})
    for limit in limits:
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            stimuli = [f"stimulus {i}" * 50 for i in range(100)]
            write_activations(path, store, "ab", stimuli=stimuli, rows=range(100), network="x", sidecar={})
            print("written", path.stat().st_size)
        except DnnbrainError as error:
            assert not list(path.parent.iterdir())
            print(type(error).__name__, error)
"""


def try_writing(path: Path, *limits: int) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "faulthandler", "-c", FAILING, str(path), *map(str, limits)],
        cwd=Path(__file__).parents[2],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_writes_that_fail_anywhere_are_explained_and_leave_nothing(tmp_path):
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "x.act.h5"
    (written,) = try_writing(path, 10**9)
    size = int(written.removeprefix("written "))
    path.unlink()
    path.with_name("x.json").unlink()
    limits = [1, 100, 5000, *range(10_000, size, 20_000), size - 1]
    lines = try_writing(path, *limits)
    assert len(lines) == len(limits) > 40
    assert set(lines) == {f"InputOutputError writing {path} failed: File too large"}
    assert try_writing(path, size - 1, size) == [lines[0], written]


def test_a_full_disk(small_disk):
    (line,) = try_writing(small_disk / "x.act.h5", 0)
    assert line.startswith(f"CannotWriteError cannot write {small_disk}/x.act.h5: No space left on device. Free some")


def test_a_folder_that_cannot_be_made(tmp_path, store):
    (tmp_path / "file").touch()
    about = {"stimuli": IDS, "rows": range(N), "network": "x", "sidecar": {}}
    with pytest.raises(CannotWriteError, match="file"):
        write_activations(tmp_path / "file" / "x.act.h5", store, store.layers, **about)


def test_a_store_that_breaks_leaves_nothing(tmp_path, store, monkeypatch):
    def fail(*_):
        raise InputOutputError("gone")

    monkeypatch.setattr(store, "take", fail)
    about = {"stimuli": IDS, "rows": range(N), "network": "x", "sidecar": {}}
    with pytest.raises(InputOutputError, match="gone"):
        write_activations(tmp_path / "out" / "x.act.h5", store, store.layers, **about)
    assert not list((tmp_path / "out").iterdir())


def test_ours_come_back(tmp_path, ours, values):
    filled = fill(tmp_path, ours)
    assert list(filled) == list(SHAPES)  # in the order of the forward pass, not of the alphabet
    for name, X in values.items():
        np.testing.assert_array_equal(filled[name], X)
    assert list_shapes(ours, ["all"]) == {**SHAPES, "clip": (4, 6, 5)}
    assert list_shapes(ours, ["fc:2", "vit*"]) == {"vit/block": (16, 5, 1), "fc:2": (9,)}


@pytest.mark.parametrize("piece", [1, 2**26])
@pytest.mark.parametrize("rows", [range(N)[::-1], [39, 0], [3, 4, 5, 9, 8, 7], [17]])
def test_some_stimuli_in_another_order(tmp_path, ours, values, rows, piece, monkeypatch):
    monkeypatch.setattr(activations, "_PIECE", piece)
    told = []
    filled = fill(tmp_path, ours, ["features.0"], [IDS[row] for row in rows], progress=lambda *n: told.append(n))
    np.testing.assert_array_equal(filled["features.0"], values["features.0"][list(rows)])
    assert list(filled) == ["features.0"]
    assert told == [(len(rows), len(rows))]


def test_the_originals_come_in_as_they_were_written(tmp_path, theirs):
    assert list_shapes(theirs, ["main"]) == {"conv1": (3, 7, 7), "conv10": (4, 2, 2), "fc3": (10,), "Fc1": (2,)}
    assert list(list_shapes(theirs, ["fc*", "conv10"])) == ["conv10", "fc3"]
    names = [f"{i}.JPEG" for i in "abcdef"]
    filled = fill(tmp_path, theirs, stimuli=["d.JPEG", "a.JPEG"], names=names)
    with h5py.File(theirs) as file:
        for name, X in filled.items():
            np.testing.assert_array_equal(X, file[name][[0, 3]][::-1].reshape(2, -1))


def test_other_numbers_and_shapes_of_layers(tmp_path):
    path = tmp_path / "x.act.h5"
    X = np.arange(60).reshape(5, 12)
    with h5py.File(path, "w") as file:
        file["folder/one"] = X.astype(np.int16)
        file["two"] = X.astype(">f8").reshape(5, 3, 4)
        file["three"] = X.astype(np.float16).reshape(5, 2, 1, 2, 3)
        file["link"] = h5py.SoftLink("/two")
        file["elsewhere"] = h5py.ExternalLink("/etc/passwd", "/x")
    assert list_shapes(path, ["all"]) == {"folder/one": (12,), "two": (3, 4), "three": (2, 1, 2, 3)}
    for filled in fill(tmp_path, path, stimuli=list("edcba"), names=list("abcde")).values():
        np.testing.assert_array_equal(filled, X[::-1])
        assert filled.dtype == np.float32


@pytest.mark.parametrize(
    ("wanted", "names", "rows"),
    [
        (["b.png", "a.png"], ["a.png", "b.png"], [1, 0]),
        (["x/b.png", "x\\a.png"], ["a.jpg", "y/b"], [1, 0]),
        (["a.png"], ["a.jpg", "a.png", "x/a.png"], [1]),  # the exact name wins
        (["a.png", "x/a.png"], ["a.png", "x/a.png"], [0, 1]),
        (["a.png"], ["b.png", "a.png", "a.png"], [1]),  # shown twice
        (["a.1.PNG", "a.2.mp4"], ["a.2", "a.1"], [1, 0]),
    ],
)
def test_stimuli_are_found_by_name(tmp_path, wanted, names, rows):
    path = tmp_path / "x.act.h5"
    with h5py.File(path, "w") as file:
        file["fc"] = np.arange(len(names))[:, None]
    filled = fill(tmp_path, path, stimuli=wanted, names=names)
    np.testing.assert_array_equal(filled["fc"][:, 0], rows)


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (["a.png", "c.png"], ["x/c.png", "y/c.png", "a"]),  # which c?
        (["a.png", "x/c.png", "y/c.jpg"], ["a", "c", "d"]),  # one row for two stimuli
        (["a.png", "C.png"], ["a", "c", "d"]),
        (["a.png", "face.2"], ["a", "face.1", "face.3"]),
        (["a.png", "n2.dog"], ["a", "n2.cat", "d"]),
    ],
)
def test_doubtful_names_are_refused(tmp_path, wanted, names):
    path = tmp_path / "x.act.h5"
    with h5py.File(path, "w") as file:
        file["fc"] = np.zeros((3, 2))
    n = len(wanted) - 1
    message = rf"no row, or not just one, for {n} of {n + 1} stimuli: {wanted[1]}.*; its rows are named '{names[0]}'"
    with pytest.raises(MissingInputError, match=message):
        fill(tmp_path, path, stimuli=wanted, names=names)


def write(path: Path, **layers) -> Path:
    with h5py.File(path, "w") as file:
        for name, data in layers.items():
            file[name] = data
    return path


def make_absent(path: Path) -> None:
    pass


def make_text(path: Path) -> None:
    path.write_text("no HDF5\n")


def make_cut(path: Path) -> None:
    write(path, fc=np.zeros((3, 5000)))
    os.truncate(path, 10_000)


def make_empty(path: Path) -> None:
    write(path)


def make_objects(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("fc", data=np.array([["a"], ["b"], ["c"]], dtype=object), dtype=h5py.string_dtype())


def make_opaque(path: Path) -> None:
    write(path, fc=np.full((3, 2), np.void(b"pickle")))


def make_records(path: Path) -> None:
    write(path, fc=np.zeros((3, 2), dtype=[("a", "f4")]))


def make_complex(path: Path) -> None:
    write(path, fc=np.zeros((3, 2), dtype=complex))


def make_flat(path: Path) -> None:
    write(path, fc=np.zeros(3))


def make_no_units(path: Path) -> None:
    write(path, fc=np.zeros((3, 0)))


def make_uneven(path: Path) -> None:
    write(path, fc=np.zeros((3, 2)), conv=np.zeros((4, 2)))


def make_long(path: Path) -> None:
    write(path, fc=np.zeros((4, 2)))


def make_nan(path: Path) -> None:
    write(path, conv=np.zeros((3, 2)), fc=np.array([[0, 0], [0, np.nan], [0, 0]]))


def make_infinite(path: Path) -> None:
    write(path, fc=np.array([[0, 0], [-np.inf, 1], [0, 0]]))


def make_large(path: Path) -> None:
    write(path, fc=np.array([[0, 0], [1e30, 1], [0, 0]], dtype=np.float32))  # K has its square


def make_double(path: Path) -> None:
    write(path, fc=np.array([[0, 0], [1e300, 1], [0, 0]]))


def make_damaged(path: Path) -> None:
    with h5py.File(path, "w") as file:
        data = file.create_dataset("fc", data=np.random.default_rng(0).random((3, 100)), compression="gzip")
        offset, size = data.id.get_chunk_info(0).byte_offset, data.id.get_chunk_info(0).size
    content = bytearray(path.read_bytes())
    content[offset + 2 : offset + size] = b"\xff" * (size - 2)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (make_absent, MissingInputError, "there is no such file"),
        (make_text, BadDataError, "is no HDF5 file; act: takes an .act.h5"),
        (make_cut, BadDataError, "cannot be opened as HDF5; it may be cut short"),
        (make_empty, BadDataError, "has no layers"),
        (make_objects, BadDataError, "layer 'fc' is of type object and shape"),
        (make_opaque, BadDataError, "layer 'fc' is of type"),
        (make_records, BadDataError, "layer 'fc' is of type"),
        (make_complex, BadDataError, "layer 'fc' is of type complex128"),
        (make_flat, BadDataError, r"shape \(3,\); numbers of shape \(stimuli, channels, rows, columns\) are needed"),
        (make_no_units, BadDataError, r"shape \(3, 0\)"),
        (make_uneven, BadDataError, "differ in their number of stimuli: conv 4, fc 3"),
        (make_long, BadDataError, "has 4 rows, but 3 stimuli are named"),
        (make_nan, BadDataError, r"layer 'fc' has values that are not finite, .* for stimulus 'b.png'"),
        (make_infinite, BadDataError, r"not finite, .* for stimulus 'b.png'"),
        (make_large, BadDataError, r"too large, for stimulus 'b.png'"),
        (make_double, BadDataError, r"too large, for stimulus 'b.png'"),
        (make_damaged, InputOutputError, "layer /fc cannot be read"),
    ],
)
def test_bad_files_are_refused(tmp_path, make, error, message):
    path = tmp_path / "bad.act.h5"
    make(path)
    names = ["a.png", "b.png", "c.png"]
    with pytest.raises(error, match=message) as caught:
        fill(tmp_path, path, stimuli=names, names=names)
    assert type(caught.value) is error
    assert "bad.act.h5" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "filled").exists()


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(BadDataError, match="HDF5"):
        list_shapes(tmp_path, ["all"])


def test_rows_without_names_are_refused(tmp_path, theirs):
    with pytest.raises(BadDataError, match=r"does not say which stimuli its rows are; put the \.stim\.csv"):
        fill(tmp_path, theirs)


def test_missing_stimuli_are_counted_and_ten_are_named(tmp_path, ours):
    wanted = [*IDS[:3], *(f"new{i}.png" for i in range(12))]
    message = r"for 12 of 15 stimuli: new0.png, .*, new9.png, \.\.\. \(12 in all\); its rows are named 'bild_0_ü.png'"
    with pytest.raises(MissingInputError, match=message):
        fill(tmp_path, ours, stimuli=wanted)


def test_an_unknown_layer_is_told_with_the_nearest(tmp_path, ours):
    with pytest.raises(UnknownNameError, match=r"unknown layer 'features.1'; did you mean 'features.0'?"):
        fill(tmp_path, ours, ["fc:2", "features.1"])
    with pytest.raises(UnknownNameError, match=r"unknown layer 'conv\*'"):
        list_shapes(ours, ["conv*"])


def test_a_layer_named_like_a_set_of_layers(tmp_path):
    path = write(tmp_path / "x.act.h5", all=np.zeros((2, 3)), fc=np.zeros((2, 3)))
    assert list(list_shapes(path, ["all"])) == ["all"]
    assert len(list_shapes(path, ["main"])) == 2


def test_files_are_identified_by_what_changes(tmp_path, ours):
    before = identify_file(ours)
    assert before["File"] == "x.act.h5"
    assert identify_file(ours) == before
    os.utime(ours, (1, 1))
    assert identify_file(ours) != before
    with pytest.raises(MissingInputError, match=r"act:.*nothing: there is no such file"):
        identify_file(tmp_path / "nothing")


def test_only_what_is_missing_is_filled_in(tmp_path, ours, values):
    def begin() -> FeatureStore:
        return FeatureStore(tmp_path / "filled", 0, shard=7)

    with begin() as store:
        store.open({"fc:2": (9,)}, N)
        for rows in (range(7), range(21, 28)):
            store.write("fc:2", rows.start, np.full((7, 9), -1.0))
            store.commit(rows, {})
    with begin() as store:
        fill_store(ours, store, ["fc:2"], IDS[::-1])
        expected = values["fc:2"][::-1].copy()
        expected[:7] = expected[21:28] = -1
        np.testing.assert_array_equal(store.read("fc:2"), expected)
    with begin() as store:
        fill_store(ours, store, ["fc:2"], IDS[::-1])  # nothing is
        np.testing.assert_array_equal(store.read("fc:2"), expected)


def test_filling_that_is_stopped_leaves_nothing(tmp_path, ours):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), FeatureStore(tmp_path / "filled", 0, shard=7) as store:
        fill_store(ours, store, ["fc:2"], IDS, progress=stop)
    assert not (tmp_path / "filled").exists()


@pytest.mark.parametrize("chunks", [None, (1, 10), (7, 3), (40, 50)])
def test_each_row_is_read_once_in_the_order_of_the_file(tmp_path, rng, monkeypatch, chunks):
    X = rng.random((40, 50), dtype=np.float32)
    with h5py.File(tmp_path / "x.act.h5", "w") as file:
        file.create_dataset("fc", data=X, chunks=chunks, compression=chunks and "gzip")
    monkeypatch.setattr(activations, "_PIECE", 5 * 200)
    read, real = [], h5py.Dataset.__getitem__

    def get(self, index):
        read.append(index)
        return real(self, index)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", get)
    order = rng.permutation(40)
    filled = fill(tmp_path, tmp_path / "x.act.h5", stimuli=[str(i) for i in order], names=[str(i) for i in range(40)])
    np.testing.assert_array_equal(filled["fc"], X[order])
    assert [index.start for index in read] == [0, *(index.stop for index in read[:-1])]
    rows = read[0].stop
    assert rows == {None: 5, (1, 10): 5, (7, 3): 7, (40, 50): 20}[chunks]

"""A network looks at the stimuli by itself; participants find what it saw."""

from __future__ import annotations

import csv
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

NETWORK = "tiny_network:build"
FOLDER = Path("stimuli/model-tinynetworkbuild")


@pytest.fixture(scope="module")
def looked(dataset: Any, tmp_path_factory: pytest.TempPathFactory, run_dnnbrain: Callable[..., Any]) -> Path:
    """The stimulus level of the miniature dataset, with all activations."""
    place = tmp_path_factory.mktemp("stimulus")
    more = ["--network", NETWORK, "--save-activations", "--work-dir", place / "work"]
    outcome = run_dnnbrain(dataset.path, place / "out", "stimulus", *more)
    assert outcome.code == 0, outcome.err
    return place


def find_one(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


@pytest.fixture(scope="module")
def plain(dataset: Any) -> dict[str, np.ndarray]:
    """Activations (n, channels, positions) by a plain forward pass, and the names of the stimuli."""
    tiny = runpy.run_path(str(Path(__file__).parents[1] / "tiny_network.py"))
    model, look, layers = tiny["build"]()
    folder = dataset.path / "stimuli"
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    x = torch.stack([look(Image.open(folder / name).convert("RGB")) for name in names])
    values: dict[str, np.ndarray] = {"names": np.array(names)}
    with torch.inference_mode():
        for layer in layers:
            x = getattr(model, layer)(x)
            values[layer] = x.flatten(2).numpy().copy()
    return values


def test_activations_are_those_of_a_plain_forward_pass(looked: Path, plain: dict[str, np.ndarray]) -> None:
    with h5py.File(find_one(looked / "out" / FOLDER, "*.act.h5")) as file:
        assert list(file.attrs["stimuli"]) == list(plain["names"])
        for layer in ("early", "middle", "late"):
            assert np.allclose(file[layer][()].reshape(plain[layer].shape), plain[layer], atol=1e-6)


def test_the_table_of_channels_says_what_they_did(looked: Path, plain: dict[str, np.ndarray]) -> None:
    table = pd.read_csv(find_one(looked / "out" / FOLDER, "*desc-channels_features.tsv"), sep="\t")
    middle = table[table["layer"] == "middle"]
    X = plain["middle"].astype(float)
    assert np.allclose(middle["mean"], X.mean(axis=(0, 2)), rtol=1e-4)
    assert np.allclose(middle["sd"], X.std(axis=(0, 2)), rtol=1e-4)
    assert np.allclose(middle["maximum"], X.max(axis=(0, 2)), rtol=1e-4)
    assert np.allclose(middle["zeros"], (X == 0).mean(axis=(0, 2)))
    assert list(middle["channel"]) == list(range(1, 17))


def test_the_preferred_stimuli_are_those_with_the_highest_activation(
    looked: Path, plain: dict[str, np.ndarray]
) -> None:
    table = pd.read_csv(find_one(looked / "out" / FOLDER, "*desc-preferred_features.tsv"), sep="\t")
    highest = plain["late"].max(axis=2)
    for channel, rows in table[table["layer"] == "late"].groupby("channel"):
        order = np.argsort(-highest[:, channel - 1], kind="stable")[:10]
        if highest[order[9], channel - 1] > 0:  # a rectified channel has many stimuli at 0
            assert list(rows["stimulus"]) == list(plain["names"][order])
        assert np.allclose(rows["value"], highest[order, channel - 1], rtol=1e-4)


def test_rdms_are_those_of_numpy(looked: Path, plain: dict[str, np.ndarray]) -> None:
    with h5py.File(find_one(looked / "out" / FOLDER, "*_relmat.h5")) as file:
        X = plain["late"].reshape(len(plain["names"]), -1)
        expected = 1 - np.corrcoef(X)[np.triu_indices(len(X), 1)]
        assert np.allclose(file["late"][0], expected, atol=1e-4)


def test_the_same_again_computes_nothing(dataset: Any, looked: Path, run_dnnbrain: Callable[..., Any]) -> None:
    more = ["--network", NETWORK, "--save-activations", "--work-dir", looked / "work"]
    outcome = run_dnnbrain(dataset.path, looked / "out", "stimulus", *more)
    assert outcome.code == 0
    assert "all results are there already" in outcome.err


def test_a_participant_takes_the_activations_from_there(
    dataset: Any, looked: Path, tmp_path: Path, run_dnnbrain: Callable[..., Any]
) -> None:
    more = ["--participant-label", "01", *dataset.options("MNI152NLin2009cAsym", atlas=False)]
    work = tmp_path / "work"
    shutil.copytree(looked / "work", work)
    outcome = run_dnnbrain(dataset.path, tmp_path / "out", "participant", *more, "--work-dir", work)
    assert outcome.code == 0, outcome.err
    assert "looks at" not in outcome.err


def test_a_lost_file_of_activations_is_written_again(
    dataset: Any, looked: Path, tmp_path: Path, run_dnnbrain: Callable[..., Any]
) -> None:
    options = [*dataset.options("MNI152NLin2009cAsym", atlas=False), "--participant-label", "01", "--save-activations"]
    options += ["--work-dir", tmp_path / "work"]
    run_dnnbrain(dataset.path, tmp_path / "out", "participant", *options)
    path = find_one(tmp_path / "out" / FOLDER, "*.act.h5")
    content = path.read_bytes()
    path.unlink()
    outcome = run_dnnbrain(dataset.path, tmp_path / "out", "participant", *options)
    assert outcome.code == 0, outcome.err
    assert path.read_bytes() == content


def test_activations_of_a_file_give_what_the_network_gives(
    dataset: Any, looked: Path, tmp_path: Path, run_dnnbrain: Callable[..., Any]
) -> None:
    """``act:FILE`` stands for the network that wrote it."""
    file = tmp_path / "mine.act.h5"
    shutil.copy(find_one(looked / "out" / FOLDER, "*.act.h5"), file)
    options = [*dataset.options("fsLR", atlas=False), "--participant-label", "01", "--work-dir", tmp_path / "work"]
    for network in (NETWORK, f"act:{file}"):
        outcome = run_dnnbrain(dataset.path, tmp_path / "out", "participant", *options, "--network", network)
        assert outcome.code == 0, outcome.err
    import nibabel

    maps = [
        nibabel.load(find_one(tmp_path / "out", f"**/*model-{label}_stat-r_*.dscalar.nii")).get_fdata()
        for label in ("tinynetworkbuild", "actmine")
    ]
    assert np.allclose(*maps, atol=1e-5, equal_nan=True)


def test_a_folder_of_images_is_enough(dataset: Any, tmp_path: Path, run_dnnbrain: Callable[..., Any]) -> None:
    """No BIDS dataset, and a list of the stimuli as the original has it."""
    shutil.copytree(dataset.path / "stimuli", tmp_path / "pictures")
    listed = tmp_path / "few.stim.csv"
    names = sorted(str(p.relative_to(tmp_path / "pictures")) for p in (tmp_path / "pictures").rglob("*.png"))[:6]
    with listed.open("w", newline="") as file:
        file.write(f"type=image\npath={tmp_path / 'pictures'}\ndata=stimID\n")
        csv.writer(file).writerows([name] for name in names)
    more = ["--network", NETWORK, "--stimulus-file", listed, "--work-dir", tmp_path / "work", "--pool", "late=max"]
    outcome = run_dnnbrain(tmp_path / "pictures", tmp_path / "out", "stimulus", *more)
    assert outcome.code == 0, outcome.err
    table = pd.read_csv(find_one(tmp_path / "out" / FOLDER, "*preferred*.tsv"), sep="\t")
    assert set(table["stimulus"]) == set(names)


def test_frames_of_a_video_are_stimuli(tmp_path: Path, run_dnnbrain: Callable[..., Any]) -> None:
    """As in the original: a list of frame numbers, each to be shown as an image."""
    av = pytest.importorskip("av", reason="PyAV is not installed (extra video)")
    films = tmp_path / "films"
    films.mkdir()
    with av.open(str(films / "film.mkv"), "w") as film:
        stream = film.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 48, "bgr0"
        for number in range(8):
            picture = np.full((48, 48, 3), 30 * number, np.uint8)
            film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        film.mux(stream.encode())
    listed = films / "film.stim.csv"
    listed.write_text(f"type=video\npath={films / 'film.mkv'}\ndata=stimID\n7\n2\n4\n")
    more = ["--network", NETWORK, "--stimulus-file", listed, "--work-dir", tmp_path / "work"]
    outcome = run_dnnbrain(films, tmp_path / "out", "stimulus", *more)
    assert outcome.code == 0, outcome.err
    table = pd.read_csv(find_one(tmp_path / "out" / FOLDER, "*preferred*.tsv"), sep="\t")
    assert set(table["stimulus"]) == {"000002.png", "000004.png", "000007.png"}
    for number in (2, 4, 7):
        (frame,) = (tmp_path / "work" / "frames").rglob(f"{number:06d}.png")
        assert np.asarray(Image.open(frame))[24, 24].tolist() == [30 * (number - 1)] * 3
    (films / "film.mkv").unlink()
    outcome = run_dnnbrain(films, tmp_path / "out", "stimulus", *more)
    assert outcome.code == 66
    assert "film.mkv does not exist" in outcome.err


@pytest.fixture
def films(dataset: Any, tmp_path: Path) -> dict[str, list[tuple[str, float]]]:
    """Clips in a folder, made of the dataset's stimuli: what is shown in each for how many seconds."""
    pictures = sorted((dataset.path / "stimuli").rglob("*.png"))
    delays = {"a.gif": [0.5, 1.5], "b.gif": [0.5, 0.5, 1.0], "c.gif": [2.5], "d.gif": [1.0, 0.5], "e.gif": [0.5, 3.0]}
    (tmp_path / "films").mkdir()
    shown: dict[str, list[tuple[str, float]]] = {}
    for name, durations in delays.items():
        some = [pictures.pop() for _ in durations]
        first, *others = (Image.open(path) for path in some)
        more = {"save_all": True, "append_images": others, "duration": [1000 * d for d in durations]} if others else {}
        first.save(tmp_path / "films" / name, **more)
        shown[name] = [(str(path), duration) for path, duration in zip(some, durations, strict=True)]
    return shown


def test_a_network_of_images_looks_at_the_frames_of_clips(
    films: dict[str, list[tuple[str, float]]], tmp_path: Path, run_dnnbrain: Callable[..., Any]
) -> None:
    """Activations of a clip, its RDMs and tables are those of the mean over its frames, weighted by their duration."""
    more = ["--network", NETWORK, "--save-activations", "--work-dir", tmp_path / "work"]
    outcome = run_dnnbrain(tmp_path / "films", tmp_path / "out", "stimulus", *more)
    assert outcome.code == 0, outcome.err
    assert "looks at 10 frames of 5 stimuli" in outcome.err

    model, look, layers = runpy.run_path(str(Path(__file__).parents[1] / "tiny_network.py"))["build"]()
    expected: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}
    for parts in films.values():
        x = torch.stack([look(Image.open(path).convert("RGB")) for path, _ in parts])
        weights = np.array([duration for _, duration in parts]) / sum(duration for _, duration in parts)
        with torch.inference_mode():
            for layer in layers:
                x = getattr(model, layer)(x)
                expected[layer].append(np.tensordot(weights, x.flatten(2).numpy(), 1))
    with h5py.File(find_one(tmp_path / "out" / FOLDER, "*.act.h5")) as file:
        assert list(file.attrs["stimuli"]) == list(films)
        for layer in layers:
            assert np.allclose(file[layer][()].reshape(5, *expected[layer][0].shape), expected[layer], atol=1e-5)
    late = np.array(expected["late"])
    with h5py.File(find_one(tmp_path / "out" / FOLDER, "*_relmat.h5")) as file:
        assert np.allclose(file["late"][0], (1 - np.corrcoef(late[..., 0]))[np.triu_indices(5, 1)], atol=1e-4)
    table = pd.read_csv(find_one(tmp_path / "out" / FOLDER, "*preferred*.tsv"), sep="\t")
    first = table[(table["layer"] == "late") & (table["rank"] == 1)]
    assert list(first["stimulus"]) == [list(films)[i] for i in late[..., 0].argmax(axis=0)]
    sidecar = find_one(tmp_path / "out" / FOLDER, "*_relmat.json").read_text()
    assert '"FrameRate": 2.0' in sidecar
    assert "means over its frames, weighted by their durations" in sidecar


def test_the_rate_of_frames_counts(films: Any, tmp_path: Path, run_dnnbrain: Callable[..., Any]) -> None:
    """The same rate finds what was computed; another one does not."""
    more = ["--network", NETWORK, "--work-dir", tmp_path / "work"]
    for rate, out, frames in ((2, "out", "looks at 10 frames"), (2, "again", ""), (0.2, "out", "looks at 5 frames")):
        outcome = run_dnnbrain(tmp_path / "films", tmp_path / out, "stimulus", *more, "--frame-rate", rate)
        assert outcome.code == 0, outcome.err
        assert frames in outcome.err
        assert ("looks at" in outcome.err) is bool(frames)


def test_clips_in_which_nothing_happens_are_as_images(
    copied: Any, dataset: Any, tmp_path: Path, run_dnnbrain: Callable[..., Any]
) -> None:
    """A participant sees animations of one picture each, and the network sees what it saw in the pictures."""
    import nibabel

    for path in (copied.path / "stimuli").rglob("*.png"):
        picture = Image.open(path).convert("RGB")
        other = picture.copy()
        other.putpixel((0, 0), (1, 2, 3))  # else Pillow would merge them into one
        picture.save(path, save_all=True, append_images=[other], duration=[10_000, 1])
    maps = []
    for place, name in ((dataset, "still"), (copied, "moving")):
        options = [*place.options("fsLR", atlas=False), "--participant-label", "01", "--work-dir", tmp_path / name]
        outcome = run_dnnbrain(place.path, tmp_path / f"out-{name}", "participant", *options)
        assert outcome.code == 0, outcome.err
        maps.append(nibabel.load(find_one(tmp_path / f"out-{name}", "**/*_stat-r_*.dscalar.nii")).get_fdata())
    assert "looks at 24 frames of 24 stimuli" in outcome.err
    assert np.allclose(*maps, atol=1e-3, equal_nan=True)


def test_a_rate_that_cannot_be(films: Any, tmp_path: Path, run_dnnbrain: Callable[..., Any]) -> None:
    more = ["--network", NETWORK, "--work-dir", tmp_path / "work", "--frame-rate", "0"]
    outcome = run_dnnbrain(tmp_path / "films", tmp_path / "out", "stimulus", *more)
    assert outcome.code == 2
    assert "frame_rate = 0" in outcome.err


def test_layers_of_a_file_are_listed(looked: Path, run_dnnbrain: Callable[..., Any]) -> None:
    file = find_one(looked / "out" / FOLDER, "*.act.h5")
    outcome = run_dnnbrain("--list-layers", f"act:{file}")
    assert outcome.code == 0, outcome.err
    assert [line.split()[:3] for line in outcome.out.splitlines()[1:4]] == [
        ["early", "8x6x6", "288"],
        ["middle", "16x2x2", "64"],
        ["late", "24", "24"],
    ]


def test_activations_of_a_file_are_taken_as_they_are(
    dataset: Any, looked: Path, tmp_path: Path, run_dnnbrain: Callable[..., Any]
) -> None:
    file = find_one(looked / "out" / FOLDER, "*.act.h5")
    more = ["--network", f"act:{file}", "--projection", "10", "--work-dir", tmp_path / "work"]
    outcome = run_dnnbrain(dataset.path, tmp_path / "out", "stimulus", *more)
    assert outcome.code == 2
    assert "--projection" in outcome.err


def test_many_stimuli_are_kept_as_features_and_mapped_all_the_same(
    dataset: Any, tmp_path: Path, run_dnnbrain: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With hardly any memory allowed for inner products, encoding gives nearly the same maps."""
    import nibabel

    from dnnbrain_app import activations

    maps = []
    for share in (activations.ANALYSIS_SHARE, 10**9):
        monkeypatch.setattr(activations, "ANALYSIS_SHARE", share)  # of features only: the analysis itself has room
        out = tmp_path / f"out{share}"
        options = [*dataset.options("fsLR", atlas=False), "--participant-label", "01", "--work-dir", tmp_path / "work"]
        outcome = run_dnnbrain(dataset.path, out, "participant", *options)
        assert outcome.code == 0, outcome.err
        assert ("features are kept instead" in outcome.err) is (share == 10**9)
        maps.append(nibabel.load(find_one(out, "**/*_stat-r_*.dscalar.nii")).get_fdata())
    difference = np.abs(maps[0] - maps[1])
    assert np.nanquantile(difference[:2], 0.99) < 1e-3
    assert np.nanmedian(difference[2]) < 1e-3  # the last layer hardly varies: often two penalties are equally good


def test_a_projection_is_said(dataset: Any, tmp_path: Path, run_dnnbrain: Callable[..., Any]) -> None:
    more = ["--network", NETWORK, "--projection", "20", "--work-dir", tmp_path / "work"]
    outcome = run_dnnbrain(dataset.path, tmp_path / "out", "stimulus", *more)
    assert outcome.code == 0, outcome.err
    text = find_one(tmp_path / "out" / FOLDER, "*_relmat.json").read_text()
    assert '"Dimensions": 20' in text


@pytest.mark.parametrize(
    ("more", "code", "parts"),
    [
        (["--network", "tiny_network:build", "--pool", "most"], 2, ["most"]),
        (["--network", NETWORK, "--pool", "early=max", "--layers", "late"], 2, ["early"]),
        (["--network", NETWORK, "--dnn-mask", "nowhere.dmask.csv"], 66, ["nowhere.dmask.csv"]),
        (["--network", "act:nowhere.act.h5"], 66, ["nowhere.act.h5"]),
        (["--network", "onnx:nowhere.onnx"], 66, ["nowhere.onnx"]),
        (["--network", NETWORK, "--stimulus-file", "nowhere.stim.csv"], 66, ["nowhere.stim.csv"]),
        (["--network", NETWORK, "--stimuli-dir", "nowhere"], 66, ["nowhere"]),
        (["--network", NETWORK, "--precision", "float16"], 2, ["float16", "bfloat16"]),
        (["--network", "alexnet", "--weights-dir", "nowhere"], 66, ["nowhere"]),
        (["--network", NETWORK, "--reports-only"], 2, ["--reports-only", "no report"]),
        (["--network", NETWORK, "--analysis", "encoding"], 2, ["--analysis encoding", "stimulus level"]),
    ],
)
def test_what_cannot_be_is_refused(
    more: list[str], code: int, parts: list[str], dataset: Any, tmp_path: Path, run_dnnbrain: Callable[..., Any]
) -> None:
    outcome = run_dnnbrain(dataset.path, tmp_path / "out", "stimulus", *more, "--work-dir", tmp_path / "work")
    assert outcome.code == code, outcome.err
    for part in parts:
        assert part in outcome.err
    assert "Traceback" not in outcome.err


def test_a_mask_that_names_channels_that_are_not_there(
    dataset: Any, tmp_path: Path, run_dnnbrain: Callable[..., Any]
) -> None:
    mask = tmp_path / "m.dmask.csv"
    mask.write_text("late=chn\n3,99\n")
    more = ["--network", NETWORK, "--dnn-mask", mask, "--work-dir", tmp_path / "work"]
    outcome = run_dnnbrain(dataset.path, tmp_path / "out", "stimulus", *more)
    assert outcome.code == 65, outcome.err
    assert "99" in outcome.err
    assert "24" in outcome.err


def test_a_dry_run_says_what_it_would_take(dataset: Any, tmp_path: Path, run_dnnbrain: Callable[..., Any]) -> None:
    more = ["--network", NETWORK, "--dry-run", "--work-dir", tmp_path / "work"]
    outcome = run_dnnbrain(dataset.path, tmp_path / "out", "stimulus", *more)
    assert outcome.code == 0, outcome.err
    assert "inner products" in outcome.out
    assert "nothing was written" in outcome.out
    assert not (tmp_path / "out").exists()

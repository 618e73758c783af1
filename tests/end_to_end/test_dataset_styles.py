"""Datasets as they are published: from their events to the files of their stimuli, with the options that they need.

Headers and rows are those of the datasets' own tables (OpenNeuro, CC0).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from dnnbrain_app.dataset.events import build_trials
from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Run, Trials
from dnnbrain_app.stimuli.mapping import read_stim_map
from dnnbrain_app.stimuli.sets import find_missing, find_stimuli


@dataclass(frozen=True)
class Style:
    """A table of events, spaces for tabs; the options; the files that lie in the folder of the stimuli."""

    events: str
    files: dict[str, str]  # of each stimulus
    trials: list[str]
    column: str = ""
    trial_filter: str = ""
    stim_map: str = ""
    others: list[str] = field(default_factory=list)


STYLES = {
    "ds000117": Style(
        "onset duration circle_duration trial_type trigger button_pushed response_time stim_file\n"
        "0.0 0.908 0.534 IniFF 5 4.0 2.158 func/f013.bmp\n"
        "3.273 0.962 0.586 ImmFF 6 4.0 1.233 func/f013.bmp\n"
        "6.647 0.825 0.546 IniUF 13 4.0 1.183 func/u014.bmp\n",
        {"func/f013.bmp": "func/f013.bmp", "func/u014.bmp": "func/u014.bmp"},
        ["func/f013.bmp", "func/f013.bmp", "func/u014.bmp"],
        others=["func/f013.txt", "meg/f013.bmp"],
    ),
    "BOLD5000": Style(
        "onset duration Subj Sess Run Trial ImgName ImgType StimOn(s) StimOff(s) Response RT stim_file\n"
        "6.0367 0.9678 1 1 1 1 n01930112_19568.JPEG imagenet 6.0367 7.0045 2 1.2 n01930112_19568.JPEG\n"
        "16.0367 0.9678 1 1 1 2 COCO_train2014_000000420713.jpg coco 16.0367 17.0045 n/a n/a "
        "COCO_train2014_000000420713.jpg\n"
        "26.0367 0.9678 1 1 1 3 rainforest6.jpg rep_scenes 26.0367 27.0045 3 0.9 rainforest6.jpg\n",
        {
            "n01930112_19568.JPEG": "ImageNet/n01930112_19568.JPEG",
            "COCO_train2014_000000420713.jpg": "COCO/COCO_train2014_000000420713.jpg",
        },
        ["n01930112_19568.JPEG", "COCO_train2014_000000420713.jpg"],
        column="ImgName",
        trial_filter="not ImgType.str.startswith('rep_') and `StimOn(s)` > 0",
        others=["Scene/rainforest6.jpg"],
    ),
    "THINGS": Style(
        "onset duration trial_type category_nr exemplar_nr test_image_nr things_category_nr things_exemplar_nr "
        "response_time file_path\n"
        "3.0 0.5 exp 236 12 n/a 569.0 12.0 n/a eyepiece/eyepiece_12s.jpg\n"
        "7.5 0.5 catch n/a n/a n/a n/a n/a 0.61 catch/catch_0001.jpg\n"
        "12.0 0.5 exp 12 12 n/a 351.0 12.0 n/a clarinet/clarinet_12s.jpg\n"
        "16.5 0.5 test n/a n/a 23 n/a n/a n/a bear/bear_01b.jpg\n",
        {
            "eyepiece/eyepiece_12s.jpg": "eyepiece/eyepiece_12s.jpg",
            "clarinet/clarinet_12s.jpg": "_images/clarinet/clarinet_12s.jpg",
        },
        ["eyepiece/eyepiece_12s.jpg", "clarinet/clarinet_12s.jpg"],
        column="file_path",
        trial_filter="trial_type == 'exp'",
    ),
    "NOD imagenet": Style(
        "onset duration trial_type response response_time stim_file\n"
        "0.0144 1.0 521.0 -1.0 2.287 imagenet/n03131574/n03131574_8247.JPEG\n"
        "4.0144 1.0 12 1.0 n/a imagenet/n02699494/n02699494_2.JPEG\n"
        "8.0144 1.0 13.0 n/a n/a imagenet/n02699494/n02699494_3.JPEG\n",
        {
            "imagenet/n03131574/n03131574_8247.JPEG": "imagenet/n03131574/n03131574_8247.JPEG",
            "imagenet/n02699494/n02699494_2.JPEG": "imagenet/n02699494/n02699494_2.jpg",
        },
        ["imagenet/n03131574/n03131574_8247.JPEG", "imagenet/n02699494/n02699494_2.JPEG"],
        trial_filter="trial_type in [12, 521]",
    ),
    "NOD coco": Style(
        "onset duration trial_type response response_time condition\n"
        "0.0144 0.5 1 n/a n/a coco/000000124419.jpg\n"
        "3.0144 0.5 2 1 0.5 coco/000000000139.jpg\n",
        {"coco/000000124419.jpg": "coco/000000124419.jpg", "coco/000000000139.jpg": "coco/000000000139.jpg"},
        ["coco/000000124419.jpg", "coco/000000000139.jpg"],
        column="condition",
        others=["coco/annotations.csv"],
    ),
    "BOLD Moments": Style(
        "onset duration trial_type stim_file\n0 4 fixation n/a\n4 3 video train/0444.mp4\n8 3 video train/0012.mp4\n",
        {"train/0444.mp4": "train/0444.mp4", "train/0012.mp4": "train/0012.mp4"},
        ["train/0444.mp4", "train/0012.mp4"],
    ),
    "GOD": Style(
        "onset duration trial_no event_type stimulus_id stimulus_name category_index image_index response_time\n"
        "0 33 1 rest n/a n/a n/a n/a n/a\n"
        "33 9 2 stimulus 3626115.019498 n03626115_19498 35 35 n/a\n"
        "69 9 6 stimulus 2416519.012793 n02416519_12793 13 13 n/a\n"
        "78 9 7 stimulus 2416519.012793 n02416519_12793 13 13 79.456518\n",
        {"n03626115_19498": "test/n03626115_19498.JPEG", "n02416519_12793": "test/n02416519_12793.JPEG"},
        ["n03626115_19498", "n02416519_12793"],
        column="stimulus_name",
        trial_filter="response_time.isna()",  # without the repetitions that are to be detected
        others=["training/n03626115_194980.JPEG"],
    ),
    "DeepRecon": Style(
        "onset duration event_type stimulus_id response_time\n"
        "0 32 -1 n/a 0.0\n"
        "32 8 1 3626115.0194980004 0.0\n"
        "40 8 1 1621127.01902 0.0\n"
        "472 6 -2 n/a 0.0\n",
        {"3626115.019498": "n03626115_19498.JPEG", "1621127.01902": "n01621127_19020.JPEG"},
        ["3626115.019498", "1621127.01902"],
        trial_filter="event_type == 1",
        stim_map="stimulus_id stimulus_name stim_file\n"
        "1621127.019020 n01621127_19020 n01621127_19020\n"
        "3626115.019498 n03626115_19498 n03626115_19498\n",
    ),
    "NSD": Style(
        "onset duration trial_type 73k_id response_time\n"
        "0.014 2.999 0 46003 0.71\n"
        "4.012 2.999 0 2 n/a\n"
        "8.011 2.999 1 46003 0.9\n",
        {"46003": "nsd_stimuli.hdf5/imgBrick/2", "2": "nsd_stimuli.hdf5/imgBrick/1"},
        ["46003", "2", "46003"],
        column="73k_id",
        stim_map="73k_id stim_file\n2.0 nsd_stimuli.hdf5/imgBrick/1\n46003.0 nsd_stimuli.hdf5/imgBrick/2\n",
    ),
    "BEP044": Style(
        "onset duration stim_id\n1 1 stim-cat\n2 1 n/a\n3 1 stim-dog\n",
        {"stim-cat": "stim-cat_image.png", "stim-dog": "stim-dog_image.jpg"},
        ["stim-cat", "stim-dog"],
        others=["stim-cat_image.json", "stim-cat_audio.wav", "stim-cat_annot-boxes_events.tsv"],
    ),
    "BEP044 draft": Style(
        "onset duration stimulus_id\n1 1 stim-cat\n3 1 stim-dog\n",
        {"stim-cat": "stim-cat_image.png", "stim-dog": "stim-dog_part-1_image.jpg"},
        ["stim-cat", "stim-dog"],
        stim_map="stimulus_id stim_file\nstim-cat stim-cat\nstim-dog stim-dog_part-1\n",
        others=["stim-dog_part-2_image.jpg"],
    ),
    "Haxby, a picture a category": Style(
        "onset duration trial_type\n12.000 0.500 scissors\n14.000 0.500 scissors\n52.500 0.500 face\n",
        {"scissors": "scissors.jpg", "face": "face.png"},
        ["scissors", "scissors", "face"],
        column="trial_type",
    ),
}


def gather(folder: Path, style: Style) -> Trials:
    path = folder / "events.tsv"
    path.write_text(style.events.replace(" ", "\t"))
    run = Run({"sub": "01", "task": "x"}, (Path("bold.nii.gz"),), path, None, None, 2.0, 0.0, 100)
    return build_trials([run], style.column, style.trial_filter)


def fill(folder: Path, style: Style) -> None:
    """Write the files of a style; those that no picture has to be in are empty."""
    for number, name in enumerate([*style.files.values(), *style.others]):
        path = folder / name
        if "hdf5" in name:
            folder.mkdir(exist_ok=True)
            with h5py.File(folder / name.partition("/")[0], "w") as file:
                file["imgBrick"] = np.arange(4 * 60, dtype=np.uint8).reshape(4, 4, 5, 3)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in style.files.values() and path.suffix != ".mp4":
            Image.new("RGB", (4, 3), (number, 9, 9)).save(path)
        else:
            path.touch()


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES.keys())
def test_from_events_to_files(tmp_path: Path, style: Style) -> None:
    trials, folder = gather(tmp_path, style), tmp_path / "stimuli"
    assert trials.stimulus.tolist() == style.trials
    fill(folder, style)
    files = None
    if style.stim_map:
        (tmp_path / "map.tsv").write_text(style.stim_map.replace(" ", "\t"))
        files = read_stim_map(tmp_path / "map.tsv", style.column)
    assert find_missing([*trials.stimulus, "something else"], folder, files) == ["something else"]
    if any(name.endswith(".mp4") for name in style.files):
        return  # the files are empty
    found = find_stimuli(trials.stimulus, folder, files=files)
    places = {name: path.relative_to(folder).as_posix() for name, path in zip(found.ids, found.paths, strict=True)}
    assert places == style.files
    assert len(set(found.digests)) == len(found)


def write_dataset(root: Path, style: Style, rng: np.random.Generator) -> None:
    """Write a run of noise, under fMRIPrep's names, in which the style's trials were shown."""
    func, derived = root / "sub-01" / "func", root / "derivatives" / "fmriprep" / "sub-01" / "func"
    func.mkdir(parents=True)
    derived.mkdir(parents=True)
    fill(root / "stimuli", style)
    (root / "dataset_description.json").write_text('{"Name": "style", "BIDSVersion": "1.10.0"}')
    (func / "sub-01_task-x_run-01_events.tsv").write_text(style.events.replace(" ", "\t"))
    image = nib.Nifti1Image(100 + rng.standard_normal((3, 3, 3, 60)).astype(np.float32), np.eye(4))
    image.header.set_zooms((1, 1, 1, 2.0))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, derived / "sub-01_task-x_run-1_space-T1w_desc-preproc_bold.nii.gz")
    mask = nib.Nifti1Image(np.ones((3, 3, 3), np.uint8), np.eye(4))
    nib.save(mask, derived / "sub-01_task-x_run-1_space-T1w_desc-brain_mask.nii.gz")


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES.keys())
def test_the_command_line_reads_it(
    tmp_path: Path, rng: np.random.Generator, run_dnnbrain: Callable[..., Any], style: Style
) -> None:
    root = tmp_path / "raw"
    write_dataset(root, style, rng)
    options = ["--network", "tiny_network:build", "--work-dir", tmp_path / "work", "--dry-run"]
    for flag, value in (("--stim-column", style.column), ("--trial-filter", style.trial_filter)):
        options += [flag, value] if value else []
    if style.stim_map:
        (tmp_path / "map.tsv").write_text(style.stim_map.replace(" ", "\t"))
        options += ["--stim-map", tmp_path / "map.tsv"]
    outcome = run_dnnbrain(root, tmp_path / "out", "participant", *options)
    assert outcome.code == 0, outcome.err
    head, row = (line.split() for line in outcome.out.splitlines()[:2])
    told = dict(zip(head, row, strict=False))
    n_stimuli = len(set(style.trials))
    assert (told["trials"], told["stimuli"], told["missing"]) == (str(len(style.trials)), str(n_stimuli), "0")


@pytest.mark.parametrize(
    ("events", "parts"),
    [
        (STYLES["THINGS"].events, ["likely: file_path, e.g. eyepiece/eyepiece_12s.jpg", "--stim-column"]),
        (STYLES["NOD coco"].events, ["likely: condition, e.g. coco/000000124419.jpg"]),
        (STYLES["NSD"].events, ["likely: 73k_id, e.g. 46003"]),
        ("onset duration trial_type\n12.000 0.500 scissors\n", ["there are: onset, duration, trial_type."]),
        ("onset duration trial_type response_time stim_file TODO--fill_in\n", ["stim_file", "names stimuli"]),
    ],
)
def test_what_to_do_is_told(tmp_path: Path, events: str, parts: list[str]) -> None:
    with pytest.raises(BadDataError) as caught:
        gather(tmp_path, Style(events, {}, []))
    assert all(part in str(caught.value) for part in parts), str(caught.value)

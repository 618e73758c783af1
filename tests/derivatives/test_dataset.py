from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from dnnbrain_app.derivatives import names
from dnnbrain_app.derivatives.dataset import check_places, check_writable, describe_dataset, prepare_dataset
from dnnbrain_app.derivatives.files import write_json, write_table, write_text
from dnnbrain_app.derivatives.ledger import Ledger
from dnnbrain_app.derivatives.locks import hold_lock
from dnnbrain_app.derivatives.maps import write_maps
from dnnbrain_app.derivatives.matrices import write_rdms
from dnnbrain_app.derivatives.sidecars import describe_map, describe_space
from dnnbrain_app.errors import CannotWriteError, UsageError
from dnnbrain_app.records import Rdm, Run

SHARED_FILES = ("dataset_description.json", ".bidsignore", "README.md")


@pytest.fixture
def bids_dir(tmp_path):
    folder = tmp_path / "bids"
    raw = {"Name": "Objects", "BIDSVersion": "1.8.0", "License": "CC0", "Authors": ["A. Author"]}
    raw["DatasetDOI"] = "doi:10.18112/openneuro.ds1"
    write_json(folder / "dataset_description.json", raw)
    return folder


# ------------------------------------------------------------------------------------------------------------- places
@pytest.mark.parametrize("output", ["out", "bids/derivatives/dnnbrain", "bids-out", "bids/derivatives/a/b"])
def test_good_places(tmp_path, bids_dir, output):
    check_places(bids_dir, tmp_path / output, tmp_path / "work")
    assert not (tmp_path / output).exists()


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("bids", "is the input dataset itself"),
        ("bids/x/..", "is the input dataset itself"),
        (".", "holds the input dataset"),
        ("bids/sub-01", "lies among the raw data"),
        ("bids/derivatives", "lies among the raw data"),
        ("bids/code/derivatives", "lies among the raw data"),
    ],
)
def test_bad_places_come_with_a_suggestion(tmp_path, bids_dir, output, words):
    with pytest.raises(UsageError, match=words) as caught:
        check_places(bids_dir, tmp_path / output)
    assert str(bids_dir / "derivatives" / "dnnbrain") in str(caught.value)


def test_a_link_to_the_input_is_the_input(tmp_path, bids_dir):
    (tmp_path / "link").symlink_to(bids_dir)
    with pytest.raises(UsageError, match="itself"):
        check_places(bids_dir, tmp_path / "link")


def test_no_work_among_the_raw_data(tmp_path, bids_dir):
    with pytest.raises(UsageError, match="--work-dir"):
        check_places(bids_dir, tmp_path / "out", bids_dir / "work")


# ------------------------------------------------------------------------------------------------------- writability
def test_a_writable_folder_is_made_and_left_empty(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert not list((tmp_path / "a" / "b").iterdir())


def test_an_unwritable_folder_says_why_and_what_to_do(tmp_path, bids_dir):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWriteError, match=r"file/out as user \d+: Not a directory.*-u \$\(id -u\)"):
        prepare_dataset(tmp_path / "file" / "out", bids_dir, {}, "0.1.0")


@pytest.mark.skipif(os.getuid() == 0, reason="permission bits do not stop root")
def test_a_folder_of_somebody_else(tmp_path, bids_dir):
    folder = tmp_path / "out"
    folder.mkdir(mode=0o555)
    with pytest.raises(CannotWriteError, match="Permission denied"):
        prepare_dataset(folder, bids_dir, {}, "0.1.0")


# ---------------------------------------------------------------------------------------------------------- description
def test_description_says_where_all_comes_from(tmp_path, bids_dir):
    output = bids_dir / "derivatives" / "dnnbrain"
    prepare_dataset(output, bids_dir, {"fmriprep": bids_dir / "derivatives" / "fmri prep"}, "0.1.0")
    description = json.loads((output / "dataset_description.json").read_text())
    assert description["Name"] == "dnnbrain derivatives of Objects"
    assert description["BIDSVersion"] == "1.10.0"
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "dnnbrain"
    assert description["GeneratedBy"][0]["Version"] == "0.1.0"
    assert description["License"] == "CC0"
    assert description["Authors"] == ["A. Author", "The dnnbrain developers"]
    assert description["DatasetLinks"] == {"raw": "../..", "fmriprep": "../fmri%20prep"}
    assert description["SourceDatasets"] == [
        {"DOI": "doi:10.18112/openneuro.ds1", "URL": "https://doi.org/10.18112/openneuro.ds1"}
    ]
    assert "CITATION.md" in description["HowToAcknowledge"]
    assert str(tmp_path) not in (output / "dataset_description.json").read_text()


def test_a_raw_dataset_that_says_nothing(tmp_path):
    (tmp_path / "ds 1").mkdir()
    description = describe_dataset(tmp_path / "out", tmp_path / "ds 1", {}, "0.1.0", {})
    assert description["Name"] == "dnnbrain derivatives of ds 1"
    assert description["DatasetLinks"] == {"raw": "../ds%201"}
    assert not {"SourceDatasets", "License"} & set(description)


@pytest.mark.parametrize(
    ("environ", "container"),
    [
        ({}, None),
        ({"DNNBRAIN_IMAGE": "x/dnnbrain:0.1.0"}, {"Type": "docker", "Tag": "x/dnnbrain:0.1.0"}),
        ({"APPTAINER_CONTAINER": "/home/me/d.sif"}, {"Type": "singularity", "Tag": "d.sif"}),
        (
            {"SINGULARITY_CONTAINER": "/home/me/d.sif", "DNNBRAIN_IMAGE": "x/dnnbrain:0.1.0"},
            {"Type": "singularity", "Tag": "x/dnnbrain:0.1.0"},
        ),
    ],
)
def test_the_container_is_named(tmp_path, bids_dir, environ, container):
    description = describe_dataset(tmp_path / "out", bids_dir, {}, "0.1.0", environ)
    assert description["GeneratedBy"][0].get("Container") == container


def test_a_second_run_touches_nothing(tmp_path, bids_dir):
    output = tmp_path / "out"
    prepare_dataset(output, bids_dir, {"fmriprep": tmp_path / "prep"}, "0.1.0")
    before = {name: (output / name).stat().st_ino for name in SHARED_FILES}
    assert {path.name for path in output.iterdir()} == set(SHARED_FILES)
    prepare_dataset(output, bids_dir, {"fmriprep": tmp_path / "prep"}, "0.1.0")
    assert {name: (output / name).stat().st_ino for name in SHARED_FILES} == before


def test_links_of_earlier_runs_are_kept(tmp_path, bids_dir):
    output = tmp_path / "out"
    prepare_dataset(output, bids_dir, {"prep1": tmp_path / "a", "prep2": tmp_path / "b"}, "0.1.0")
    prepare_dataset(output, bids_dir, {"prep2": tmp_path / "c"}, "0.1.0")
    description = json.loads((output / "dataset_description.json").read_text())
    assert description["DatasetLinks"] == {"raw": "../bids", "prep1": "../a", "prep2": "../c"}


def test_another_version_warns_and_updates(tmp_path, bids_dir, caplog):
    prepare_dataset(tmp_path / "out", bids_dir, {}, "0.1.0")
    with caplog.at_level(logging.WARNING):
        prepare_dataset(tmp_path / "out", bids_dir, {}, "0.2.0")
    assert "holds results of dnnbrain 0.1.0; this is 0.2.0" in caplog.text
    description = json.loads((tmp_path / "out" / "dataset_description.json").read_text())
    assert description["GeneratedBy"][0]["Version"] == "0.2.0"


@pytest.mark.parametrize(
    "content",
    [
        '{"Name": "prep", "GeneratedBy": [{"Name": "fMRIPrep"}]}',
        '{"Name": "raw"}',
        '{"GeneratedBy": {"Name": "x"}}',
        "{",
    ],
)
def test_somebody_elses_dataset_is_left_alone(tmp_path, bids_dir, content):
    output = tmp_path / "prep"
    write_text(output / "dataset_description.json", content)
    with pytest.raises(UsageError, match=r"prep is another dataset.*prep/dnnbrain"):
        prepare_dataset(output, bids_dir, {}, "0.1.0")
    assert list(output.iterdir()) == [output / "dataset_description.json"]
    assert (output / "dataset_description.json").read_text() == content


def test_many_runs_may_prepare_one_folder(tmp_path, bids_dir):
    failures = []

    def prepare():
        try:
            for _ in range(20):
                prepare_dataset(tmp_path / "out", bids_dir, {}, "0.1.0")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=prepare) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(SHARED_FILES)


# ------------------------------------------------------------------------------------------------------------ validator
@pytest.fixture
def validate():
    beside = Path(sys.executable).with_name("bids-validator-deno")
    command = shutil.which("bids-validator-deno") or (str(beside) if beside.exists() else None)
    if command is None:
        pytest.skip(
            "bids-validator-deno not found: the output tree was not validated (pip install bids-validator-deno)"
        )

    def run(folder):
        done = subprocess.run([command, folder, "--format", "json"], capture_output=True, text=True, check=False)
        return done.returncode, json.loads(done.stdout)["issues"]["issues"]

    return run


def _write_unit(root, unit, space, rng):
    """One of every kind of file that a unit has."""
    where = describe_space(space, root / "none_bold.nii.gz")
    data = rng.standard_normal((2, space.n_voxels)).astype(np.float32)
    stems = [names.encoding_map(root, unit, "alexnet", stat) for stat in names.ENCODING_STATS]
    for stem in [*stems, names.beta_map(root, unit, "lss"), names.beta_map(root, unit, "condition")]:
        write_maps(stem, data, ["conv1", "fc8"], space, describe_map("Maps", ["bids:raw:sub-01"], space=where))
    tables = [
        names.beta_trials(root, unit, "lss"),
        names.design_table(root, Run({**unit.entities, "run": "01"}, (), root, None, None, 2.0, 0.0, 3)),
    ]
    tables += [names.region_table(root, unit, "MMP", "alexnet", analysis) for analysis in ("encoding", "rsa")]
    for table in tables:
        write_table(table, {"region": ["V1"], "r": [0.5]})
        if not names.sidecar(table).exists():
            write_json(names.sidecar(table), describe_map("Table", [], columns={"region": "Name"}))
    rdms = [Rdm("V1", np.ones(3), ("a", "b", "c"))]
    write_rdms(names.region_rdms(root, unit, "MMP"), rdms, describe_map("RDMs", []), "bRDM")
    write_rdms(names.layer_rdms(root, unit, "alexnet"), rdms, describe_map("RDMs", []), "dRDM")
    with hold_lock(names.lock_file(root, unit)):
        Ledger(names.status_file(root, unit)).record("betas", "k", tables)


@pytest.fixture(params=[{}, {"ses": "a"}], ids=["no sessions", "sessions"])
def output_tree(request, tmp_path, bids_dir, cifti_space, gifti_space, nifti_space, make_unit, rng):
    root = tmp_path / "out"
    prepare_dataset(root, bids_dir, {"fmriprep": bids_dir / "derivatives" / "fmriprep"}, "0.1.0")
    for space in (cifti_space, gifti_space, nifti_space):
        _write_unit(root, make_unit(space, **request.param), space, rng)
    write_text(names.report(root, "01"), "<!doctype html>")
    write_text(names.figures_folder(root, "01") / "a.svg", "<svg/>")
    write_text(names.citation(root), "# Methods")
    write_text(names.config_file(root, "run"), "")
    write_text(names.crash_file(root, "01", "run", "unit"), "")
    activations = names.activations(root, "alexnet", "0" * 64)
    write_text(activations, "")
    write_text(names.sidecar(activations), "{}")
    return root


def test_the_validator_finds_nothing(output_tree, validate):
    code, issues = validate(output_tree)
    assert issues == []
    assert code == 0


def test_the_validator_would_find_a_name_of_no_pattern(output_tree, validate):
    write_text(output_tree / "sub-01" / "func" / "sub-01_task-objects_scores.tsv", "a\n1\n")
    code, issues = validate(output_tree)
    assert code == 16
    assert "sub-01_task-objects_scores.tsv" in json.dumps(issues)

from __future__ import annotations

import json
import platform
from pathlib import Path

import numpy as np
import pytest

import dnnbrain_app
from dnnbrain_app.derivatives.files import format_json
from dnnbrain_app.derivatives.sidecars import describe_map, describe_space, list_versions, make_uri

ROOTS = {"": Path("/data/derivatives/dnnbrain"), "raw": Path("/data"), "fmriprep": Path("/data/derivatives/fmriprep")}


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        ("/data/sub-01/func/a.tsv", "bids:raw:sub-01/func/a.tsv"),
        ("/data/derivatives/fmriprep/sub-01/a.nii", "bids:fmriprep:sub-01/a.nii"),
        ("/data/derivatives/dnnbrain/sub-01/a.nii", "bids::sub-01/a.nii"),
        ("/data/derivatives/fmriprep/../../x", "bids:raw:x"),
        ("/data/stimuli/a b#1.jpg", "bids:raw:stimuli/a%20b%231.jpg"),
        ("/database/x", "x"),
        ("/home/somebody/atlas.dlabel.nii", "atlas.dlabel.nii"),
    ],
)
def test_uri_names_the_innermost_dataset(path, uri):
    assert make_uri(Path(path), ROOTS) == uri


def test_uri_of_an_annexed_file_is_its_name(tmp_path):
    (tmp_path / ".git" / "annex").mkdir(parents=True)
    (tmp_path / ".git" / "annex" / "key").write_text("")
    (tmp_path / "sub-01").mkdir()
    (tmp_path / "sub-01" / "a.nii").symlink_to(tmp_path / ".git" / "annex" / "key")
    (tmp_path / "link").symlink_to(tmp_path)
    assert make_uri(tmp_path / "sub-01" / "a.nii", {"raw": tmp_path / "link"}) == "bids:raw:sub-01/a.nii"


def test_space_takes_the_words_of_the_input(tmp_path, cifti_space):
    bold = tmp_path / "sub-01_space-fsLR_den-91k_bold.dtseries.nii"
    reference = {"VolumeReference": "x", "CIFTI_STRUCTURE_LEFT_CORTEX": "y"}
    given = {"SpatialReference": reference, "Density": "91,282", "SkullStripped": False, "RepetitionTime": 2}
    (tmp_path / "sub-01_space-fsLR_den-91k_bold.json").write_text(json.dumps(given))
    assert describe_space(cifti_space, bold) == {"SpatialReference": reference, "Density": "91,282"}


def test_space_says_what_bids_requires_without_them(tmp_path, space):
    described = describe_space(space, tmp_path / "none_bold.nii.gz")
    assert described["SpatialReference"] == space.name
    assert ("Resolution" in described) == ("res" in space.entities)
    assert ("Density" in described) == ("den" in space.entities)
    assert described.get("SkullStripped") is (True if space.format == "nifti" else None)


def test_description_holds_what_is_given_in_order():
    described = describe_map(
        "Encoding",
        ["bids:raw:x"],
        space={"SpatialReference": "fsLR"},
        maps=("conv1", "fc8"),
        statistic="Pearson correlation",
        network="alexnet",
        weights={"sha256": "0f", "licence": None, "n": np.int64(3)},
        layers=("conv1", "fc8"),
        cross_validation={"n_folds": 10},
        versions={"numpy": "2"},
        columns={"region": "Name of the region"},
    )
    assert list(described) == [
        *("Description", "Sources", "SpatialReference", "Statistic", "Maps", "Network", "Weights", "Layers"),
        *("CrossValidation", "SoftwareVersions", "region"),
    ]
    assert described["region"] == {"Description": "Name of the region"}
    assert json.loads(format_json(described))["Weights"]["n"] == 3


def test_description_of_little_is_short():
    assert describe_map("d", []) == {"Description": "d"}


def test_versions_of_what_is_installed():
    versions = list_versions(("numpy", "no-such-package"))
    expected = {"dnnbrain": dnnbrain_app.__version__, "python": platform.python_version(), "numpy": np.__version__}
    assert versions == expected

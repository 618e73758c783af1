from __future__ import annotations

import fnmatch
from pathlib import Path

import pytest

from dnnbrain_app.derivatives import names
from dnnbrain_app.derivatives.dataset import BIDSIGNORE
from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Run

OUT = Path("out")


def test_the_names_of_a_units_files(cifti_space, make_unit):
    unit = make_unit(cifti_space, ses="a")
    start = "out/sub-01/ses-a/func/sub-01_ses-a_task-objects"
    found = {
        str(path)
        for path in (
            names.encoding_map(OUT, unit, "alexnet", "r"),
            names.beta_map(OUT, unit, "lss"),
            names.beta_trials(OUT, unit, "lss"),
            names.region_table(OUT, unit, "MMP", "alexnet", "rsa"),
            names.region_rdms(OUT, unit, "MMP"),
            names.layer_rdms(OUT, unit, "alexnet"),
        )
    }
    assert found == {
        f"{start}_space-fsLR_den-91k_model-alexnet_stat-r_desc-encoding_statmap",
        f"{start}_space-fsLR_den-91k_stat-effect_desc-lss_statmap",
        f"{start}_space-fsLR_den-91k_stat-effect_desc-lss_statmap.tsv",
        f"{start}_space-fsLR_seg-MMP_den-91k_model-alexnet_desc-rsa_statmap.tsv",
        f"{start}_space-fsLR_seg-MMP_den-91k_stat-correlation_relmat.h5",
        f"{start}_model-alexnet_stat-correlation_relmat.h5",
    }


def test_every_stat_has_its_own_map(cifti_space, make_unit):
    unit = make_unit(cifti_space)
    assert len({names.encoding_map(OUT, unit, "alexnet", stat) for stat in names.ENCODING_STATS}) == 4


def test_the_design_keeps_the_run_as_it_is_spelt():
    run = Run({"sub": "01", "task": "x", "run": "01", "acq": "hi"}, (), Path("e"), None, None, 2.0, 0.0, 10)
    assert names.design_table(OUT, run) == OUT / "sub-01/func/sub-01_task-x_acq-hi_run-01_design.tsv"


def test_places_of_reports_and_logs(cifti_space, make_unit):
    unit = make_unit(cifti_space)
    assert names.report(OUT, "01") == OUT / "sub-01.html"
    assert names.figures_folder(OUT, "01") == OUT / "sub-01/figures"
    assert names.status_file(OUT, unit) == OUT / "sub-01/log/sub-01_task-objects_space-fsLR_den-91k.json"
    assert names.lock_file(OUT, unit) == OUT / "sub-01/log/sub-01_task-objects_space-fsLR_den-91k.lock"
    assert names.config_file(OUT, "r1") == OUT / "logs/r1/config.toml"
    assert names.crash_file(OUT, "01", "r1", unit.label).parent == OUT / "sub-01/log/r1"
    assert names.citation(OUT) == OUT / "logs/CITATION.md"
    digest = "0123456789abcdef"
    assert names.activations(OUT, "net", digest) == OUT / "stimuli/model-net/model-net_stimuli-0123456789ab.act.h5"


def test_entities_come_in_the_order_of_bids():
    entities = {
        "desc": "x",
        "hash": "1",
        "res": "2",
        "cohort": "1",
        "space": "MNI",
        "hemi": "L",
        "run": "1",
        "ses": "a",
    }
    joined = names.join_entities({**entities, "sub": "01", "stat": "r", "model": "m", "seg": "A", "task": "t"})
    assert joined == ("sub-01_ses-a_task-t_run-1_hash-1_hemi-L_space-MNI_cohort-1_seg-A_res-2_model-m_stat-r_desc-x")


def test_hemisphere_goes_before_space():
    stem = Path("a/sub-01_task-x_run-1_space-fsnative_model-m_stat-r_desc-encoding_statmap")
    assert names.add_entity(stem, "hemi", "R").name == (
        "sub-01_task-x_run-1_hemi-R_space-fsnative_model-m_stat-r_desc-encoding_statmap"
    )


@pytest.mark.parametrize("name", ["a_statmap", "a_statmap.tsv", "a_statmap.dscalar.nii", "a_statmap.func.gii"])
def test_sidecar_replaces_the_whole_extension(name):
    assert names.sidecar(Path("b.c") / name) == Path("b.c/a_statmap.json")


def test_labels_hold_letters_and_digits_only():
    assert names.to_label("HCP-MMP 1.0_é") == "HCPMMP10"
    with pytest.raises(BadDataError, match="'--'"):
        names.to_label("--")


def test_bidsignore_covers_every_suffix_of_ours(cifti_space, make_unit):
    unit = make_unit(cifti_space)
    run = Run({"sub": "01", "task": "x"}, (), Path("e"), None, None, 2.0, 0.0, 10)
    for path in (
        names.beta_trials(OUT, unit, "lss"),
        names.sidecar(names.beta_map(OUT, unit, "lss")),
        names.region_rdms(OUT, unit, "A"),
        names.layer_rdms(OUT, unit, "m"),
        names.design_table(OUT, run),
        names.report(OUT, "01"),
    ):
        assert any(fnmatch.fnmatch(path.name, pattern) for pattern in BIDSIGNORE.split()), path

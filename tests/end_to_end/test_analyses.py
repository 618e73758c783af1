"""Searchlights and decoding, from the command line to maps and tables."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

SPACE = "MNI152NLin2009cAsym"


@pytest.fixture(scope="module")
def outcome(
    dataset: Any, run_dnnbrain: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("analyses")
    dataset = replace(dataset, path=shutil.copytree(dataset.path, folder / "raw"))
    names = sorted(path.relative_to(dataset.path / "stimuli") for path in (dataset.path / "stimuli").rglob("*.png"))
    rows = "".join(f"{name}\t{name.parent}\n" for name in names)
    (dataset.path / "stimuli" / "stimuli.tsv").write_text(f"stim_file\tcategory\n{rows}")
    (folder / "short.toml").write_text("[searchlight]\nn_permutations = 99\n\n[decoding]\nn_permutations = 99\n")
    options = [*dataset.options(SPACE), "--participant-label", "01", "--work-dir", folder / "work"]
    options += ["--analysis", "searchlight", "decoding", "--radius", "5", "--attribute", "category"]
    options += ["--config-file", folder / "short.toml"]
    result = run_dnnbrain(dataset.path, folder / "out", "participant", *options)
    assert result.code == 0, result.err
    again = run_dnnbrain(dataset.path, folder / "out", "participant", *options)
    assert "all results are there already" in again.err
    return dataset, folder / "out"


def read_map(output: Path, stat: str) -> np.ndarray:
    (path,) = output.glob(f"sub-01/func/*_stat-{stat}_desc-searchlight_statmap.nii.gz")
    data = np.asarray(nib.load(path).dataobj)
    inside = np.zeros(data.shape[:3], bool)
    inside[1:-1, 1:-1, 1:-1] = True  # the simulated mask
    return data[inside].T


def test_searchlights_find_what_was_planted(outcome: tuple[Any, Path]) -> None:
    dataset, output = outcome
    similarity, p, pfwe = (read_map(output, stat) for stat in ("similarity", "p", "pfwe"))
    truth = dataset.truth[SPACE]
    outside = np.setdiff1d(np.arange(similarity.shape[1]), np.concatenate(list(truth.values())))
    assert np.nanmean(similarity[2, truth["LATE"]]) > 0.3
    assert np.nanmean(similarity[2, truth["LATE"]]) > np.nanmean(similarity[0, truth["LATE"]])
    assert abs(np.nanmean(similarity[:, outside])) < 0.1
    assert np.nanmedian(p[2, truth["LATE"]]) <= 0.05
    assert np.nanmedian(p[2, truth["LATE"]]) < np.nanmedian(p[2, outside])
    assert (pfwe >= p)[np.isfinite(p)].all()


def test_attributes_are_decoded_where_they_are_planted(outcome: tuple[Any, Path]) -> None:
    _, output = outcome
    (path,) = output.glob("sub-01/func/*_desc-decoding_statmap.tsv")
    table = pd.read_csv(path, sep="\t").query("measure == 'accuracy'").set_index("region")
    assert set(table.attribute) == {"category"}
    assert set(table.n_stimuli) == {24}
    assert table.score["LATE"] > table.score["NOISE"] + 0.2
    assert table.p["LATE"] <= 0.02
    assert table.p["NOISE"] > 0.02
    confusion = json.loads(path.with_suffix(".json").read_text())["Confusion"]["category LATE"]
    assert np.sum(confusion["Counts"]) == 24
    assert np.trace(confusion["Counts"]) / 24 == pytest.approx(table.score["LATE"])


def test_decoding_needs_an_attribute_that_there_is(
    dataset: Any, run_dnnbrain: Callable[..., Any], tmp_path: Path
) -> None:
    options = [*dataset.options(SPACE), "--work-dir", tmp_path / "work", "--analysis", "decoding"]
    result = run_dnnbrain(dataset.path, tmp_path / "out", "participant", *options)
    assert result.code == 2
    assert "--analysis decoding needs --attribute NAME" in result.err
    result = run_dnnbrain(dataset.path, tmp_path / "out", "participant", *options, "--attribute", "category")
    assert result.code == 2
    assert "unknown attribute of the stimuli 'category'; there are none" in result.err


def test_searchlights_on_a_surface_need_its_mesh(
    simulate: Callable[..., Any], run_dnnbrain: Callable[..., Any], tmp_path: Path
) -> None:
    data = simulate(tmp_path / "raw", "fsaverage5")
    (tmp_path / "short.toml").write_text("[searchlight]\nn_permutations = 0\n")
    options = [*data.options("fsaverage5"), "--analysis", "searchlight", "--config-file", tmp_path / "short.toml"]
    result = run_dnnbrain(data.path, tmp_path / "out", "participant", *options, "--work-dir", tmp_path / "work")
    assert result.code == 0, result.err
    images = sorted(tmp_path.glob("out/sub-01/func/*_stat-similarity_desc-searchlight_statmap.func.gii"))
    similarity = np.hstack([np.stack([array.data for array in nib.load(path).darrays]) for path in images])
    assert similarity[2, data.truth["fsaverage5"]["LATE"]].mean() > 0.2
    assert not list(tmp_path.glob("out/sub-01/func/*_stat-p_desc-searchlight_*"))

"""One command from a dataset to maps, tables and a report, in which what was planted is found."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

SPACES = ("fsLR", "MNI152NLin2009cAsym", "fsaverage5")
LAYERS = ["early", "middle", "late"]


@dataclass(frozen=True)
class Results:
    """What a run on one space wrote."""

    dataset: Any
    space: str
    output: Path

    def find(self, pattern: str) -> list[Path]:
        return sorted((self.output / "sub-01" / "func").glob(f"*{pattern}"))

    def read_table(self, analysis: str) -> pd.DataFrame:
        (path,) = self.find(f"_desc-{analysis}_statmap.tsv")
        return pd.read_csv(path, sep="\t")

    def read_map(self, stat: str) -> np.ndarray:
        """(n_maps, n columns) as another reader sees them: nibabel alone."""
        images = [
            path for path in self.find(f"_stat-{stat}_desc-*_statmap.*") if path.suffix in (".nii", ".gz", ".gii")
        ]
        assert len(images) == (2 if self.space == "fsaverage5" else 1)
        if self.space == "fsaverage5":
            return np.hstack([[array.data for array in nib.load(path).darrays] for path in images])
        data = np.asarray(nib.load(images[0]).dataobj)
        if self.space == "fsLR":
            return data
        inside = np.zeros(data.shape[:3], bool)
        inside[1:-1, 1:-1, 1:-1] = True  # the simulated mask
        return np.atleast_2d(data[inside].T)


@pytest.fixture(scope="module", params=SPACES)
def results(
    request: pytest.FixtureRequest,
    simulate: Callable[..., Any],
    dataset: Any,
    run_dnnbrain: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Results:
    space, folder = request.param, tmp_path_factory.mktemp(request.param)
    data = simulate(folder / "raw", space) if space == "fsaverage5" else dataset
    options = [*data.options(space), "--participant-label", "01", "--work-dir", folder / "work"]
    outcome = run_dnnbrain(data.path, folder / "out", "participant", *options)
    assert outcome.code == 0, outcome.err
    assert "1 of 1 units complete" in outcome.err
    return Results(data, space, folder / "out")


def test_encoding_finds_what_was_planted(results: Results) -> None:
    r = results.read_table("encoding").pivot_table(index="region", columns="layer", values="r")[LAYERS]
    assert r.loc["EARLY"].idxmax() in ("early", "middle")
    assert r.loc["LATE"].idxmax() in ("middle", "late")
    assert r.loc["EARLY", "early"] > 0.3
    assert r.loc["LATE", "late"] > 0.4
    assert r.loc["EARLY", "early"] - r.loc["EARLY", "late"] > 0.25
    assert r.loc["LATE", "late"] - r.loc["LATE", "early"] > 0.1


def test_encoding_finds_nothing_where_no_layer_is(results: Results) -> None:
    r = results.read_map("r")
    truth = results.dataset.truth[results.space]
    outside = np.setdiff1d(np.arange(r.shape[1]), np.concatenate(list(truth.values())))
    assert np.abs(np.nanmean(r[:, truth["NOISE"]], axis=1)).max() < 0.15
    assert np.abs(np.nanmean(r[:, outside], axis=1)).max() < 0.1
    assert (results.read_map("bestlayer")[0, outside] > 0).mean() < 0.05


def test_rsa_finds_what_was_planted(results: Results) -> None:
    table = results.read_table("rsa")
    for comparison in ("pearson", "spearman", "rho-a"):
        profile = table.pivot_table(index="region", columns="layer", values=comparison)[LAYERS]
        assert profile.loc["EARLY"].idxmax() in ("early", "middle")
        assert profile.loc["LATE"].idxmax() == "late"
        assert profile.loc["EARLY", "early"] > 0.3
        assert profile.loc["LATE", "late"] > 0.3
        assert profile.loc["NOISE"].abs().max() < 0.2


def test_tables_are_means_of_the_maps(results: Results) -> None:
    table = results.read_table("encoding")
    for stat in ("r", "rsquared"):
        values = results.read_map(stat)
        assert len(values) == len(LAYERS)
        for region, columns in results.dataset.truth[results.space].items():
            rows = table[table.region == region].sort_values("depth")
            assert list(rows.layer) == LAYERS
            assert (rows.n_voxels == len(columns)).all()
            np.testing.assert_allclose(rows[stat], values[:, columns].mean(axis=1, dtype=float), rtol=2e-5, atol=1e-6)


def test_best_layer_is_the_one_with_the_highest_r(results: Results) -> None:
    r, best = results.read_map("r"), results.read_map("bestlayer")[0]
    found = best > 0
    assert found[results.dataset.truth[results.space]["LATE"]].mean() > 0.3
    np.testing.assert_array_equal(best[found], r[:, found].argmax(axis=0) + 1)


def test_each_beta_has_its_row(results: Results) -> None:
    (path,) = results.find("_stat-effect_desc-lss_statmap.tsv")
    trials = pd.read_csv(path, sep="\t")
    assert len(trials) == 48 == len(results.read_map("effect"))
    events = [pd.read_csv(f, sep="\t") for f in sorted((results.dataset.path / "sub-01").rglob("*_events.tsv"))]
    assert list(trials.stimulus) == [name for table in events for name in table.stim_file]
    np.testing.assert_allclose(trials.onset, np.concatenate([table.onset for table in events]))


def test_sidecars_name_sources_that_exist_and_layers(results: Results) -> None:
    description = json.loads((results.output / "dataset_description.json").read_text())
    roots = {name: results.output / unquote(link) for name, link in description["DatasetLinks"].items()}
    roots[""] = results.output
    sidecars = results.find(".json")
    images = [path for path in results.find("") if path.suffix != ".json"]
    assert {path.name.split(".")[0] for path in sidecars} == {path.name.split(".")[0] for path in images}
    for path in sidecars:
        about = json.loads(path.read_text())
        assert about["Description"]
        assert about["Sources"]
        for source in about["Sources"]:
            scheme, name, where = source.split(":", 2)
            assert scheme == "bids"
            assert (roots[name] / unquote(where)).is_file(), source
        if "_model-" in path.name:
            assert about["Layers"] == LAYERS
            assert about["Network"] == "tinynetworkbuild"
            assert len(about["Weights"]["SHA256"]) == 64
        if "_stat-r_" in path.name:
            assert about["Maps"] == LAYERS


def test_the_validator_has_nothing_to_say(results: Results) -> None:
    beside = Path(sys.executable).with_name("bids-validator-deno")
    validator = str(beside) if beside.exists() else shutil.which("bids-validator-deno")
    if validator is None:
        pytest.skip("bids-validator-deno is not installed")
    done = subprocess.run([validator, "--json", str(results.output)], capture_output=True, text=True, timeout=300)
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [(issue["code"], issue.get("location")) for issue in issues] == []
    assert done.returncode == 0


def test_workbench_reads_every_map(results: Results) -> None:
    command = shutil.which("wb_command")
    if command is None:
        pytest.skip("wb_command (Connectome Workbench) is not installed")
    if results.space == "MNI152NLin2009cAsym":
        return
    for path in [*results.find("_stat-r_*.nii"), *results.find("_stat-r_*.gii"), *results.find("_stat-effect_*i")]:
        done = subprocess.run([command, "-file-information", str(path)], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        text = done.stdout
        assert "Invalid" not in text
        assert "Connectivity Unknown" not in text
        assert re.search(r"Number of Maps: +(\d+)", text)[1] == ("3" if "_stat-r_" in path.name else "48")
        if "_stat-r_" in path.name:
            names = subprocess.run(
                [command, "-file-information", str(path), "-only-map-names"], capture_output=True, text=True
            ).stdout
            assert names.split() == LAYERS


def test_the_report_is_whole_and_stands_alone(results: Results) -> None:
    html = (results.output / "sub-01.html").read_text()
    text = re.sub(r"<[^>]+>", " ", re.sub(r"(?s)<(style|script).*?</\1>", " ", html))
    for section in ("Summary", "Data", "Layer", "RDM", "Design", "Methods", "References", "Errors"):
        assert re.search(section, text, re.IGNORECASE), section
    for name in ("tiny_network:build", *LAYERS, "EARLY", "LATE", "NOISE", results.space):
        assert name in text, name
    assets = re.findall(r"""<(?:img|script|link|iframe|source|image)[^>]*?(?:src|href)=["']([^"']+)""", html)
    assert [asset[:60] for asset in assets if re.match(r"(https?:)?//", asset)] == []
    assert re.findall(r"url\(\s*['\"]?(?:https?:)?//", html) == []
    assert "@import" not in html
    assert (results.output / "logs" / "CITATION.md").stat().st_size > 500


def test_the_configuration_is_kept_and_gives_the_same_again(
    results: Results, run_dnnbrain: Callable[..., Any], tmp_path: Path
) -> None:
    (saved,) = results.output.glob("logs/*/config.toml")
    options = ["--config-file", saved, "--space", results.space, "--work-dir", tmp_path / "work"]
    outcome = run_dnnbrain(results.dataset.path, results.output, "participant", *options)
    assert outcome.code == 0, outcome.err
    assert "all results are there already" in outcome.err


def test_the_raw_dataset_is_not_touched(results: Results) -> None:
    """Nothing in it is younger than the first file of the output."""
    first = min(path.stat().st_mtime_ns for path in results.output.rglob("*") if path.is_file())
    assert max(path.stat().st_mtime_ns for path in results.dataset.path.rglob("*")) < first


@pytest.fixture(scope="module")
def shuffled(
    dataset: Any, run_dnnbrain: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], pd.DataFrame]:
    """Results on the same data after the stimuli of each run have changed places."""
    folder = tmp_path_factory.mktemp("shuffled")
    shutil.copytree(dataset.path, folder / "raw")
    order = np.random.default_rng(7)
    for path in sorted((folder / "raw" / "sub-01").rglob("*_events.tsv")):
        events = pd.read_csv(path, sep="\t")
        events["stim_file"] = order.permutation(events["stim_file"])
        events.to_csv(path, sep="\t", index=False)
    options = [*dataset.options("fsLR"), "--participant-label", "01", "--work-dir", folder / "work"]
    outcome = run_dnnbrain(folder / "raw", folder / "out", "participant", *options)
    assert outcome.code == 0, outcome.err
    return Results(dataset, "fsLR", folder / "out").read_table


def test_shuffled_stimuli_bring_every_score_to_chance(shuffled: Callable[[str], pd.DataFrame]) -> None:
    encoding, rsa = shuffled("encoding"), shuffled("rsa")
    assert encoding.r.abs().max() < 0.25
    assert abs(encoding.r.mean()) < 0.1
    assert rsa[["pearson", "spearman", "rho-a"]].abs().max(axis=None) < 0.2

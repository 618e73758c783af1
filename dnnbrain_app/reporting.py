"""From the files of an output folder to the report: everything shown is read back from what was written."""

from __future__ import annotations

import json
import logging
import resource
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dnnbrain_app import __version__
from dnnbrain_app.config import Config, dump_toml
from dnnbrain_app.dataset.atlases import name_atlas, read_atlas
from dnnbrain_app.dataset.confounds import read_confounds
from dnnbrain_app.dataset.events import build_trials
from dnnbrain_app.dataset.images import read_bold, read_unit_space
from dnnbrain_app.dataset.surfaces import find_meshes
from dnnbrain_app.derivatives import names
from dnnbrain_app.derivatives.dataset import check_places, prepare_dataset
from dnnbrain_app.derivatives.files import write_atomically, write_text
from dnnbrain_app.derivatives.ledger import Ledger, digest_key
from dnnbrain_app.derivatives.maps import name_maps, read_maps
from dnnbrain_app.derivatives.matrices import read_rdms
from dnnbrain_app.derivatives.sidecars import list_versions, read_json
from dnnbrain_app.derivatives.tables import read_region_table, read_table, read_trials
from dnnbrain_app.records import Array, BrainSpace, EncodingScores, Rdm, RsaScores, Trials, Unit
from dnnbrain_app.reports.contents import Design, NetworkReport, Provenance, RunRow, UnitReport
from dnnbrain_app.reports.methods import (
    EncodingFacts,
    MethodsFacts,
    NetworkFacts,
    ResponseFacts,
    RsaFacts,
    write_methods,
)
from dnnbrain_app.session import Session
from dnnbrain_app.stages import choose_analyses, find_output, find_stimuli_folder, gather_stimuli

logger = logging.getLogger(__name__)
_TRIALS_SHOWN = 12


def report_participant(units: Sequence[Unit], session: Session, failures: Mapping[str, Exception]) -> None:
    """Write the report of the participant whose units these are, unless it shows these results already."""
    participant = units[0].participant
    root = session.output
    status = [names.status_file(root, unit) for unit in units]
    done = [path.read_text(encoding="utf-8") if path.exists() else "" for path in status]
    errors = tuple(f"{unit.label}: {failures[unit.label]}" for unit in units if unit.label in failures)
    config = session.config
    shown = [config.networks, config.responses, config.encoding, config.rsa, config.stimuli, config.dataset.atlas]
    asked = [config.dataset.rois, config.run.analyses, config.run.random_seed, config.run.resource_monitor]
    key = digest_key([__version__, done, errors, [unit.label for unit in units], shown, asked])
    ledger = Ledger(names.report_status(root, participant))
    if ledger.is_current("report", key):
        return
    from dnnbrain_app.reports.participant import ParticipantReport, render_participant  # slow, and rarely needed

    start = time.monotonic()
    computed = [unit for unit, text in zip(units, done, strict=True) if text and unit.label not in failures]
    pages = tuple(describe_unit(unit, session) for unit in computed)
    facts = collect_facts(session.config, computed, pages)
    provenance = Provenance(
        command=shlex.join(["dnnbrain", *session.command_line[1:]]),
        configuration=dump_toml(session.config),
        versions={"dnnbrain": __version__, **list_versions()},
        seed=session.config.run.random_seed,
        resources=measure_resources() if session.config.run.resource_monitor else {},
    )
    dataset = str(read_json(session.config.bids_dir / "dataset_description.json").get("Name", ""))
    report = ParticipantReport(participant, pages, facts, dataset, errors, provenance)
    rendered = render_participant(report)
    outputs = [names.report(root, participant)]
    write_text(outputs[0], rendered.html)
    for name, content in rendered.figures.items():
        outputs.append(names.figures_folder(root, participant) / name)
        write_atomically(outputs[-1], lambda part, content=content: part.write_bytes(content))  # type: ignore[misc]
    write_text(names.citation(root), write_methods(facts))
    ledger.record("report", key, outputs)
    logger.info("sub-%s: report written in %.0f s", participant, time.monotonic() - start)


def measure_resources() -> dict[str, str]:
    """Measure what this process has taken so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return {
        "Processor time": f"{used.ru_utime + used.ru_stime:.0f} s",
        "Peak memory": f"{used.ru_maxrss * unit / 1024**3:.2f} GB",
    }


def write_boilerplate(config: Config) -> str:
    """Write the methods text that the settings imply, without computing anything; returns what to tell the user."""
    output = find_output(config)
    check_places(config.bids_dir, output)
    prepare_dataset(output, config.bids_dir, {}, __version__)
    path = names.citation(output)
    write_text(path, write_methods(collect_facts(config, (), ())))
    return f"methods text: {path}"


def describe_unit(unit: Unit, session: Session) -> UnitReport:
    """Read back all that was written about a unit."""
    config, root = session.config, session.output
    space = read_unit_space(unit)
    shown = build_trials(unit.runs, config.stimuli.column)
    trials = read_trials(names.beta_trials(root, unit, config.responses.model))
    stimuli = gather_stimuli(trials.stimulus, find_stimuli_folder(config), session)
    atlas = read_atlas(config.dataset.atlas, space, config.dataset.rois)
    networks = tuple(
        read_network(name, unit, space, atlas.name if atlas else "", session) for name in config.networks.names
    )
    has_rdms = atlas is not None and "rsa" in choose_analyses(config)
    return UnitReport(
        unit=unit,
        space=space,
        n_stimuli=len(stimuli),
        n_trials=len(trials),
        runs=describe_runs(unit, shown, trials, config, root),
        networks=networks,
        region_rdms=tuple(read_rdms(names.region_rdms(root, unit, atlas.name))) if has_rdms and atlas else (),
        meshes=find_meshes(unit, [path for name, path in session.roots.items() if name not in ("", "raw")]),
        background=read_bold(unit.runs[0], space).mean(axis=0) if space.format == "nifti" else None,
        design=read_design(unit, shown, root),
        attributes=stimuli.attributes,
        warnings=warn_about(shown, trials),
    )


def read_network(name: str, unit: Unit, space: BrainSpace, atlas: str, session: Session) -> NetworkReport:
    """Read back what one network explains of a unit."""
    root, analyses, label = session.output, choose_analyses(session.config), names.label_network(name)
    stems = {stat: names.encoding_map(root, unit, label, stat) for stat in names.ENCODING_STATS}
    encoding, rsa, region_r = None, None, None
    layer_rdms: tuple[Rdm, ...] = ()
    layers: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    if "encoding" in analyses:
        maps: dict[str, Array] = {stat: read_maps(stem, space) for stat, stem in stems.items()}
        about = read_json(names.sidecar(name_maps(stems["alpha"], space)[0]))
        layers = tuple(about["Layers"])
        edges = float(about["EdgeFraction"])
        best = maps["bestlayer"][0]
        encoding = EncodingScores(label, layers, maps["r"], maps["rsquared"], maps["alpha"], best, edges)
        if atlas:
            _, regions, means = read_region_table(names.region_table(root, unit, atlas, label, "encoding"))
            region_r = means["r"]
    if "rsa" in analyses:
        layers, named, similarity = read_region_table(names.region_table(root, unit, atlas, label, "rsa"))
        rsa = RsaScores(label, layers, named, similarity)
        layer_rdms = tuple(read_rdms(names.layer_rdms(root, unit, label)))
    return NetworkReport(label, layers, encoding, regions, region_r, rsa, layer_rdms)


def describe_runs(unit: Unit, shown: Trials, kept: Trials, config: Config, root: Path) -> tuple[RunRow, ...]:
    """Describe the data run by run."""
    rows = []
    for number, run in enumerate(unit.runs):
        label, confounds = shown.run_labels[number], read_confounds(run)
        n_shown = int((shown.run == number).sum())
        columns = list(read_table(names.design_table(root, run)).columns)
        n_kept = (
            sum(kept.run_labels[i] == label for i in kept.run) if config.responses.model != "condition" else n_shown
        )
        moved = confounds.get("framewise_displacement")
        rows.append(
            RunRow(
                label=label,
                n_volumes=run.n_volumes,
                repetition_time=run.repetition_time,
                start_time=run.start_time,
                n_trials=n_kept,
                n_dropped=n_shown - n_kept,
                confounds=tuple(columns[1 + n_shown :]),
                mean_displacement=None if moved is None else float(np.nanmean(moved)),
            )
        )
    return tuple(rows)


def read_design(unit: Unit, shown: Trials, root: Path) -> Design:
    """Read back the first run's design: some trials, the sum of all, and the nuisance regressors."""
    table = read_table(names.design_table(root, unit.runs[0]))
    n_trials = int((shown.run == 0).sum())
    events, nuisance = table.iloc[:, 1 : 1 + n_trials], table.iloc[:, 1 + n_trials :]
    few = events.iloc[:, :_TRIALS_SHOWN]
    matrix = np.column_stack([few.to_numpy(), events.sum(axis=1), nuisance.to_numpy()])
    titles = (*(str(name) for name in few.columns), "all trials", *(str(name) for name in nuisance.columns))
    note = f"the first {few.shape[1]} of {n_trials} trials, their sum, and the nuisance regressors"
    return Design(shown.run_labels[0], matrix, titles, table["frame_time"].to_numpy(), note)


def warn_about(shown: Trials, kept: Trials) -> tuple[str, ...]:
    """Say what a reader of the results must know."""
    said = []
    repeats = len(kept) / max(len(set(kept.stimulus)), 1)
    if repeats == 1 and len(shown) == len(kept):
        said.append(
            "Every stimulus was shown once: there are no repeats to average, and no noise ceiling can be known."
        )
    if len(set(shown.stimulus)) > len(set(kept.stimulus)):
        said.append(
            f"{len(set(shown.stimulus)) - len(set(kept.stimulus))} stimuli are left out, as none of their trials could "
            "be estimated."
        )
    return tuple(said)


def collect_facts(config: Config, units: Sequence[Unit], pages: Sequence[UnitReport]) -> MethodsFacts:
    """Gather what the methods text says; without results, what the settings imply."""
    analyses, responses, encoding = choose_analyses(config), config.responses, config.encoding
    layers = {network.network: network.layers for page in pages for network in page.networks}
    used = {name for page in pages for row in page.runs for name in row.confounds}
    return MethodsFacts(
        version=__version__,
        tasks=tuple(dict.fromkeys(unit.task for unit in units)) or config.dataset.tasks,
        spaces=tuple(dict.fromkeys(unit.space for unit in units)) or config.dataset.spaces,
        n_runs=sum(len(page.runs) for page in pages[:1]) or None,
        n_trials=pages[0].n_trials if pages else None,
        n_stimuli=pages[0].n_stimuli if pages else None,
        fmriprep=_find_fmriprep(units),
        networks=tuple(_describe_network(name, layers, units, config) for name in config.networks.names),
        responses=ResponseFacts(
            model=responses.model,
            hrf=responses.hrf,
            scaling=responses.scaling,
            noise_model=responses.noise_model,
            motion=responses.motion,
            compcor=responses.compcor,
            spikes=any("outlier" in name for name in used) if pages else responses.spikes,
            high_pass=responses.high_pass or None,
            drifts_from_confounds=any(name.startswith("cosine") for name in used) if pages else None,
        ),
        encoding=EncodingFacts(
            n_folds=encoding.n_folds,
            folds_by=encoding.folds_by,
            alpha_min=encoding.alpha_min,
            alpha_max=encoding.alpha_max,
            n_alphas=encoding.n_alphas,
            q=0.05,
            n_null=encoding.n_null,
        )
        if "encoding" in analyses
        else None,
        rsa=RsaFacts(config.rsa.comparisons) if "rsa" in analyses else None,
        atlas=", ".join(dict.fromkeys(map(name_atlas, config.dataset.atlas))),
        regions={name: rule for name, _, rule in (roi.partition("=") for roi in config.dataset.rois)},
        surfaces=tuple(dict.fromkeys(mesh.name for page in pages for mesh in page.meshes.values())),
        software=list_versions(),
        seed=config.run.random_seed,
    )


def _describe_network(
    name: str, layers: Mapping[str, tuple[str, ...]], units: Sequence[Unit], config: Config
) -> NetworkFacts:
    """Describe a network by what the sidecars of its results say."""
    label = names.label_network(name)
    about: dict[str, Any] = {}
    for unit in units:
        folder = names.encoding_map(find_output(config), unit, label, "r").parent
        for path in sorted(folder.glob(f"*_model-{label}_*.json")):
            about = about or read_json(path).get("Weights", {})
    return NetworkFacts(
        name=name,
        weights=str(about.get("Weights", "")),
        layers=layers.get(label, ()),
        transform=str(about.get("Transform", "")),
        source="torchvision" if "torchvision" in json.dumps(about) else "",
        precision=str(about.get("Precision", "float32")),
        reduction=tuple(f"{layer}: {kept}" for layer, kept in about.get("Reduction", {}).items()),
        projection=int(about.get("Projection", {}).get("Dimensions", 0)),
    )


def _find_fmriprep(units: Sequence[Unit]) -> str | None:
    """Find fMRIPrep's version in the description of the derivative that the first run lies in."""
    for folder in units[0].runs[0].bold[0].parents if units else ():
        made_by: list[dict[str, Any]] = read_json(folder / "dataset_description.json").get("GeneratedBy", [])
        for tool in made_by:
            if tool.get("Name", "").lower() == "fmriprep":
                return str(tool.get("Version", ""))
    return None

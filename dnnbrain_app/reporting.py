"""From the files of an output folder to the report: everything shown is read back from what was written."""

from __future__ import annotations

import json
import logging
import resource
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dnnbrain_app import __version__
from dnnbrain_app.analysis_stages import choose_analyses, find_output
from dnnbrain_app.config import Config, dump_toml
from dnnbrain_app.dataset.atlases import name_atlas, read_atlas
from dnnbrain_app.dataset.confounds import read_confounds
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
from dnnbrain_app.inputs import find_stimuli_folder, gather_stimuli, gather_trials
from dnnbrain_app.records import Array, Atlas, BrainSpace, EncodingScores, Rdm, RsaScores, Trials, Unit
from dnnbrain_app.reports.contents import Design, NetworkReport, Provenance, ResponseReport, RunRow, UnitReport
from dnnbrain_app.reports.facts import (
    DecodingFacts,
    EncodingFacts,
    MethodsFacts,
    NetworkFacts,
    ResponseFacts,
    RsaFacts,
    SearchlightFacts,
)
from dnnbrain_app.reports.methods import write_methods
from dnnbrain_app.reports.wording import count_things
from dnnbrain_app.rsa_stage import TESTED, choose_comparison
from dnnbrain_app.session import Session

logger = logging.getLogger(__name__)
T = TypeVar("T")
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
    space, model = read_unit_space(unit), config.responses.model
    shown = gather_trials(unit, config)
    trials = shown if model == "timeseries" else read_trials(names.beta_trials(root, unit, model))
    stimuli = gather_stimuli(trials.stimulus, find_stimuli_folder(config), session)
    atlas = read_atlas(config.dataset.atlas, space, config.dataset.rois)
    networks = tuple(
        read_network(name, unit, space, atlas.name if atlas else "", session) for name in config.networks.names
    )
    has_rdms = atlas is not None and "rsa" in choose_analyses(config)
    has_runs = model != "precomputed"  # else there are images of betas
    presented = shown if model == "condition" else trials  # has one row a stimulus
    responses = read_responses(unit, space, presented, atlas, session)
    return UnitReport(
        unit=unit,
        space=space,
        n_stimuli=len(stimuli),
        n_trials=len(presented),
        runs=describe_runs(unit, shown, trials, config, root) if has_runs else count_trials(trials),
        networks=networks,
        region_rdms=read_region_rdms(unit, atlas.name, session) if has_rdms and atlas else (),
        meshes=find_meshes(unit, [path for name, path in session.roots.items() if name not in ("", "raw")]),
        background=read_bold(unit.runs[0], space).mean(axis=0) if space.format == "nifti" and has_runs else None,
        design=read_design(unit, shown, model, root) if has_runs else None,
        attributes=stimuli.attributes,
        warnings=warn_about(shown, trials, responses, with_rsa="rsa" in choose_analyses(config)),
        responses=responses,
    )


def read_responses(
    unit: Unit, space: BrainSpace, trials: Trials, atlas: Atlas | None, session: Session
) -> ResponseReport:
    """Read back how good the responses are."""
    options, maps = session.config.responses, {}
    for stat in names.RESPONSE_STATS:
        stem = names.response_map(session.output, unit, options.model, stat)
        if name_maps(stem, space)[0].exists():
            maps[stat] = read_maps(stem, space)[0]
    return ResponseReport(
        model=options.model,
        counts=np.unique(trials.stimulus.astype(str), return_counts=True)[1],
        n_runs=len(trials.run_labels),
        maps=maps,
        min_reliability=options.min_reliability,
        library=name_library(options.hrf) if "hrf" in maps else {},
        regions=atlas.regions if atlas else {},
        has_frequent=options.model == "lss" and has_frequent(trials),
    )


def has_frequent(trials: Trials) -> bool:
    """Whether a run shows a stimulus so often that it has a regressor of its own in the models of other trials."""
    from dnnbrain_app.responses.weights import OFTEN

    shown = Counter(zip(trials.run, trials.stimulus, strict=True))
    return any(n >= OFTEN for n in shown.values())


def name_library(hrf: str) -> dict[str, float]:
    """Name the responses that a voxel may have, and say when each peaks, in s."""
    from dnnbrain_app.responses.hrfs import build_library  # imports nilearn's models

    step = 50
    peaks = [float(np.argmax(kernel(1.0, step)) / step) for kernel in build_library(hrf)]
    assumed = {"glover": "Glover", "spm": "SPM"}[hrf]
    titles = [f"{assumed} ({peaks[0]:.1f} s)", *(f"{peak:.1f} s" for peak in peaks[1:])]
    return dict(zip(titles, peaks, strict=True))


def read_region_rdms(unit: Unit, atlas: str, session: Session) -> tuple[Rdm, ...]:
    """Read back the RDMs of regions, whose distances the table of a network names."""
    label = names.label_network(session.config.networks.names[0])
    about = read_json(names.sidecar(names.region_table(session.output, unit, atlas, label, "rsa")))
    return tuple(read_rdms(names.region_rdms(session.output, unit, atlas, str(about["Metric"]))))


def read_network(name: str, unit: Unit, space: BrainSpace, atlas: str, session: Session) -> NetworkReport:
    """Read back what one network explains of a unit."""
    root, analyses, label = session.output, choose_analyses(session.config), names.label_network(name)
    stems = {stat: names.encoding_map(root, unit, label, stat) for stat in names.ENCODING_STATS}
    encoding, rsa, region_r = None, None, None
    layer_rdms: tuple[Rdm, ...] = ()
    further: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    if "encoding" in analyses:
        maps: dict[str, Array] = {stat: read_maps(stem, space) for stat, stem in stems.items()}
        about = read_json(names.sidecar(name_maps(stems["alpha"], space)[0]))
        layers = tuple(about["Layers"])
        edges = float(about["EdgeFraction"])
        best = maps["bestlayer"][0]
        more = {stat: name_maps(names.encoding_map(root, unit, label, stat), space) for stat in names.ENCODING_MORE}
        further = tuple(stat for stat, paths in more.items() if paths[0].exists())
        encoding = EncodingScores(label, layers, maps["r"], maps["rsquared"], maps["alpha"], best, edges)
        if atlas:
            _, regions, means = read_region_table(names.region_table(root, unit, atlas, label, "encoding"))
            region_r = means["r"]
    if "rsa" in analyses:
        path = names.region_table(root, unit, atlas, label, "rsa")
        layers, named, columns = read_region_table(path)
        similarity = {name: values for name, values in columns.items() if name not in TESTED}
        inference = {name: values for name, values in columns.items() if name in TESTED}
        rsa = RsaScores(label, layers, named, similarity, str(read_json(names.sidecar(path))["Tested"]), inference)
        layer_rdms = tuple(read_rdms(names.layer_rdms(root, unit, label, session.config.rsa.layer_metric)))
    return NetworkReport(label, layers, encoding, regions, region_r, rsa, layer_rdms, further)


def describe_runs(unit: Unit, shown: Trials, kept: Trials, config: Config, root: Path) -> tuple[RunRow, ...]:
    """Describe the data run by run."""
    rows = []
    for number, run in enumerate(unit.runs):
        label, confounds = shown.run_labels[number], read_confounds(run)
        n_shown = int((shown.run == number).sum())
        n_kept = (
            sum(kept.run_labels[i] == label for i in kept.run) if config.responses.model != "condition" else n_shown
        )
        moved = confounds.get("framewise_displacement")
        rows.append(
            RunRow(
                label=label,
                n_trials=n_kept,
                n_volumes=run.n_volumes,
                repetition_time=run.repetition_time,
                start_time=run.start_time,
                n_dropped=n_shown - n_kept,
                confounds=tuple(read_json(names.sidecar(names.design_table(root, run)))["Nuisance"]),
                mean_displacement=None if moved is None else float(np.nanmean(moved)),
            )
        )
    return tuple(rows)


def count_trials(trials: Trials) -> tuple[RunRow, ...]:
    """Count the trials of each run, where nothing else is known of it."""
    counts = np.bincount(trials.run, minlength=len(trials.run_labels))
    return tuple(RunRow(label, int(n)) for label, n in zip(trials.run_labels, counts, strict=True))


def read_design(unit: Unit, shown: Trials, model: str, root: Path) -> Design:
    """Read back the first run's design: some trials and the sum of all (of time series, all), and the nuisance."""
    path = names.design_table(root, unit.runs[0])
    table, nuisance = read_table(path), read_json(names.sidecar(path))["Nuisance"]
    n_trials = int((shown.run == 0).sum())
    columns = table.drop(columns=["frame_time", *nuisance])  # trials, then their derivatives
    note = ""
    if model != "timeseries":
        few, total = columns.iloc[:, : min(n_trials, _TRIALS_SHOWN)], columns.iloc[:, :n_trials].sum(axis=1)
        note = f"the first {few.shape[1]} of {n_trials} trials, their sum, and the nuisance regressors"
        columns = few.assign(**{"all trials": total})
    matrix = np.column_stack([columns.to_numpy(), table[nuisance].to_numpy()])
    titles = tuple(map(str, [*columns.columns, *nuisance]))
    return Design(shown.run_labels[0], matrix, titles, table["frame_time"].to_numpy(), note)


def warn_about(shown: Trials, kept: Trials, responses: ResponseReport, *, with_rsa: bool) -> tuple[str, ...]:
    """Say what a reader of the results must know."""
    said, n_repeated = [], responses.n_repeated
    if responses.model not in ("condition", "timeseries") and not responses.has_ceiling:
        often = "no stimulus has" if not n_repeated else f"only {n_repeated} of {len(set(kept.stimulus))} stimuli have"
        said.append(f"No noise ceiling can be known, nor which voxels are reliable, as {often} two or more trials.")
    if responses.model == "glmsingle" and "fraction" not in responses.maps:
        said.append(
            "No stimulus was shown in two runs, by which the noise regressors and the ridge of glmsingle are judged: "
            "its responses are those of lss, with each voxel's own haemodynamic response."
        )
    if with_rsa and responses.model == "lss" and n_repeated:
        said.append(
            "RSA of lss responses: a part of each response is its neighbours', which blurs RDMs of strong signals. "
            "As stimuli repeat, condition or glmsingle keep the geometry better."
        )
    n_lost = len(set(shown.stimulus)) - len(set(kept.stimulus))
    if n_lost:
        said.append(f"Left out: {count_things(n_lost, 'stimulus')}, none of whose trials could be estimated.")
    return tuple(said)


def collect_facts(config: Config, units: Sequence[Unit], pages: Sequence[UnitReport]) -> MethodsFacts:
    """Gather what the methods text says; without results, what the settings imply."""
    analyses = choose_analyses(config)
    layers = {network.network: network.layers for page in pages for network in page.networks}
    return MethodsFacts(
        version=__version__,
        tasks=tuple(dict.fromkeys(unit.task for unit in units)) or config.dataset.tasks,
        spaces=tuple(dict.fromkeys(unit.space for unit in units)) or config.dataset.spaces,
        n_runs=sum(len(page.runs) for page in pages[:1]) or None,
        n_trials=pages[0].n_trials if pages else None,
        n_stimuli=pages[0].n_stimuli if pages else None,
        fmriprep=_find_fmriprep(units),
        networks=tuple(_describe_network(name, layers, units, config) for name in config.networks.names),
        responses=_describe_responses(config, pages),
        encoding=_describe_encoding(config, units, pages) if "encoding" in analyses else None,
        rsa=_describe_rsa(config, pages) if "rsa" in analyses else None,
        searchlight=_take(config.searchlight, SearchlightFacts) if "searchlight" in analyses else None,
        decoding=_take(config.decoding, DecodingFacts) if "decoding" in analyses else None,
        atlas=", ".join(dict.fromkeys(map(name_atlas, config.dataset.atlas))),
        regions={name: rule for name, _, rule in (roi.partition("=") for roi in config.dataset.rois)},
        surfaces=tuple(dict.fromkeys(mesh.name for page in pages for mesh in page.meshes.values())),
        software=list_versions(),
        seed=config.run.random_seed,
        trial_filter=config.stimuli.trial_filter,
    )


def _take(options: Any, facts: Callable[..., T]) -> T:
    """Make facts of the options that have the same names."""
    return facts(**{name: getattr(options, name) for name in facts.__slots__})  # type: ignore[attr-defined]


def _describe_responses(config: Config, pages: Sequence[UnitReport]) -> ResponseFacts:
    """Describe how responses were estimated: what was asked for, and what of it there was in the data."""
    options = config.responses
    used = {name for page in pages for row in page.runs for name in row.confounds}
    found = [page.responses for page in pages if page.responses is not None]
    return ResponseFacts(
        model=options.model,
        hrf=options.hrf,
        scaling=options.scaling,
        noise_model=options.noise_model,
        motion=options.motion,
        compcor=options.compcor,
        spikes=any("outlier" in name for name in used) if pages else options.spikes,
        high_pass=options.high_pass or None,
        drifts_from_confounds=any(name.startswith("cosine") for name in used) if pages else None,
        fd_threshold=options.fd_threshold,
        fir_length=options.fir_length,
        min_reliability=options.min_reliability,
        has_ceiling=any(responses.has_ceiling for responses in found),
        has_frequent=any(responses.has_frequent for responses in found),
        is_regularised=any("fraction" in responses.maps for responses in found) if found else None,
    )


def _describe_encoding(config: Config, units: Sequence[Unit], pages: Sequence[UnitReport]) -> EncodingFacts:
    """Describe the encoding models: what was asked for, and which maps came of it."""
    options = config.encoding
    written = {stat for page in pages for network in page.networks for stat in network.further}
    return EncodingFacts(
        n_folds=_count_folds(units, config),
        folds_by=options.folds_by,
        alpha_min=options.alpha_min,
        alpha_max=options.alpha_max,
        n_alphas=options.n_alphas,
        q=0.05,
        n_null=options.n_null,
        n_permutations=options.n_permutations if not pages or "pfwe" in written else 0,
        ceiling_floor=options.ceiling_floor if "rnorm" in written else 0.0,
        n_bootstrap=options.n_bootstrap if "confidence" in written else 0,
    )


def _describe_rsa(config: Config, pages: Sequence[UnitReport]) -> RsaFacts:
    """Describe the RSA: what was asked for, and which distances and tests came of it."""
    options, is_average = config.rsa, config.responses.model == "condition"
    metrics: tuple[str, ...] = (options.metric,)
    if options.metric == "auto":
        found = {rdm.metric for page in pages for rdm in page.region_rdms}
        possible = ("correlation",) if is_average else ("crossnobis", "correlation")
        metrics = tuple(metric for metric in possible if metric in found) or possible
    known = {name for page in pages for network in page.networks if network.rsa for name in network.rsa.inference}
    return RsaFacts(
        comparisons=options.comparisons,
        metrics=metrics,
        layer_metric=options.layer_metric,
        tested=tuple(dict.fromkeys(choose_comparison(metric, options.comparisons) for metric in metrics)),
        n_permutations=options.n_permutations if not pages or "p" in known else 0,
        n_bootstraps=options.n_bootstraps if not pages or "low" in known else 0,
    )


def _count_folds(units: Sequence[Unit], config: Config) -> int:
    """Count the folds that there were, which may be fewer than asked for."""
    for unit in units:
        for name in config.networks.names:
            stem = names.encoding_map(find_output(config), unit, names.label_network(name), "r")
            for path in sorted(stem.parent.glob(f"*_model-{names.label_network(name)}_stat-r_desc-encoding_*.json")):
                return int(read_json(path)["CrossValidation"]["Folds"])
    return config.encoding.n_folds


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
        frame_rate=float(about.get("FrameRate", 0)),
        clip_frames=int(about.get("Frames", 0)),
    )


def _find_fmriprep(units: Sequence[Unit]) -> str | None:
    """Find fMRIPrep's version in the description of the derivative that the first run lies in."""
    for folder in units[0].runs[0].bold[0].parents if units else ():
        made_by: list[dict[str, Any]] = read_json(folder / "dataset_description.json").get("GeneratedBy", [])
        for tool in made_by:
            if tool.get("Name", "").lower() == "fmriprep":
                return str(tool.get("Version", ""))
    return None

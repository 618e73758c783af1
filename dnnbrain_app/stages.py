"""The stages of a unit: each reads what it needs, calls one piece of science, and writes what came out.

`workflow` says in which order, and which stages are done already. A stage returns the files it wrote.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dnnbrain_app import __version__
from dnnbrain_app.activations import ANALYSIS_SHARE, identify_features
from dnnbrain_app.config import Config
from dnnbrain_app.dataset.atlases import list_atlas_files
from dnnbrain_app.dataset.confounds import read_confounds
from dnnbrain_app.dataset.images import read_bold
from dnnbrain_app.dataset.roots import find_raw
from dnnbrain_app.derivatives import names
from dnnbrain_app.derivatives.files import write_json
from dnnbrain_app.derivatives.ledger import digest_key, stamp
from dnnbrain_app.derivatives.maps import read_maps, write_maps
from dnnbrain_app.derivatives.matrices import write_rdms
from dnnbrain_app.derivatives.sidecars import describe_map, describe_space, list_versions, make_uri, read_json
from dnnbrain_app.derivatives.tables import read_trials, write_design, write_region_table, write_trials
from dnnbrain_app.errors import BadDataError, MissingInputError, UsageError
from dnnbrain_app.records import (
    Activations,
    Array,
    Atlas,
    Betas,
    BrainSpace,
    EncodingScores,
    Rdm,
    Run,
    StimulusSet,
    Trials,
    Unit,
)
from dnnbrain_app.session import Session
from dnnbrain_app.stimuli.sets import find_stimuli

# Rooms that import torch or scikit-learn are imported where they are used: a run that finds all its results there
# must not wait for them.

logger = logging.getLogger(__name__)
BETA_UNITS = {
    "zscore": "standard deviations of the voxel over its run",
    "percent": "percent of the voxel's mean over its run",
    "none": "as the preprocessed data",
}
ENCODING_MAPS = {
    "r": "Pearson correlation between predicted and measured responses to held-out stimuli, mean over folds",
    "rsquared": "Held-out R squared: 1 - residual over total sum of squares, the total around the training mean",
    "alpha": "Ridge penalty in units of the training kernel's mean eigenvalue, geometric mean over folds",
    "bestlayer": "Number of the layer (from 1) with the highest correlation; 0 where no layer is significant",
}


@dataclass(frozen=True, slots=True, eq=False)
class Responses:
    """What the brain did: one response a stimulus (repeats averaged), and where the columns lie."""

    unit: Unit
    space: BrainSpace
    atlas: Atlas | None
    trials: Trials
    stimuli: StimulusSet
    Y: Array


def choose_analyses(config: Config) -> tuple[str, ...]:
    """Name the analyses to run: as asked; else encoding, and RSA where an atlas gives regions."""
    return config.run.analyses or (("encoding", "rsa") if config.dataset.atlas else ("encoding",))


def check_analyses(config: Config) -> None:
    """Refuse what cannot be computed or written, before anything is."""
    atlases = config.dataset.atlas
    if "rsa" in choose_analyses(config) and not atlases:
        raise UsageError("--analysis rsa compares regions of the brain; name an atlas with --atlas")
    for path in atlases:
        if not path.exists():
            raise MissingInputError(f"--atlas {path}: does not exist")
    check_networks(config.networks.names)


def check_networks(networks: Sequence[str]) -> None:
    """Refuse two networks whose results would have the same names."""
    labels: dict[str, str] = {}
    for network in networks:
        other = labels.setdefault(names.label_network(network), network)
        if other != network:
            raise UsageError(
                f"networks {other!r} and {network!r} would write the same files; run them into two folders"
            )


def find_stimuli_folder(config: Config) -> Path:
    """Return the folder of the stimuli."""
    return config.stimuli.directory or find_raw(config.bids_dir) / "stimuli"


def gather_stimuli(
    named: Iterable[str], folder: Path, session: Session, table: pd.DataFrame | None = None
) -> StimulusSet:
    """Find the stimuli; what is known of their files is kept in the work folder, so that they are read once."""
    path = session.config.run.work_dir / f"stimuli-{__version__}.json"
    known = read_json(path)
    n_known = len(known)
    progress = partial(session.progress, "stimuli: files")
    stimuli = find_stimuli(named, folder, table=table, known=known, progress=progress)
    if len(known) != n_known:
        write_json(path, known)
    return stimuli


def find_output(config: Config) -> Path:
    """Return the output dataset: OUTPUT_DIR, or a folder in it named by the settings, the same for all participants."""
    if config.run.output_layout == "bids":
        return config.output_dir
    dataset = replace(config.dataset, participants=())
    rooms = [config.networks, config.responses, config.encoding, config.rsa, dataset, config.stimuli]
    return config.output_dir / f"dnnbrain-{digest_key([__version__, rooms, config.run.random_seed])[:8]}"


def key_responses(unit: Unit, config: Config) -> str:
    """Digest all that the betas depend on."""
    files = [file for run in unit.runs for file in (*run.bold, run.events, run.confounds, run.mask) if file]
    timing = [(run.repetition_time, run.start_time) for run in unit.runs]
    return digest_key([__version__, list(map(stamp, files)), timing, config.responses, config.stimuli.column])


def key_analysis(name: str, network: str, responses: str, stimuli: StimulusSet, session: Session) -> str:
    """Digest all that an analysis of a network depends on; `responses` is the key of the betas."""
    config = session.config
    seen = [identify_features(network, stimuli, session), stimuli.ids, stimuli.digests]
    regions = [list(map(stamp, list_atlas_files(config.dataset.atlas))), config.dataset.rois]
    groups = list(stimuli.attributes.get(config.encoding.folds_by, ()))
    own = {"encoding": [config.encoding, config.run.random_seed, groups], "rsa": [config.rsa]}
    return digest_key([name, responses, seen, regions, own[name]])


def estimate_responses(unit: Unit, trials: Trials, space: BrainSpace, session: Session) -> list[Path]:
    """Fit the general linear model; write the betas, what each of them is, and the design of each run."""
    from dnnbrain_app.responses.glm import RunData, estimate_betas
    from dnnbrain_app.responses.nuisance import build_nuisance

    options, outputs = session.config.responses, []
    nuisances = [build_nuisance(read_confounds(run), run.frame_times, options) for run in unit.runs]

    def read_runs() -> Iterator[RunData]:
        for number, (run, (nuisance, _)) in enumerate(zip(unit.runs, nuisances, strict=True)):
            session.progress(f"{unit.label}: runs", number, len(unit.runs))
            yield RunData(read_bold(run, space), run.frame_times, nuisance)

    data, kept = estimate_betas(read_runs(), trials, options)
    for number, (run, (nuisance, columns)) in enumerate(zip(unit.runs, nuisances, strict=True)):
        outputs += write_run_design(run, trials.take(trials.run == number), nuisance, columns, session)
    shown = zip(kept.stimulus, kept.run, kept.repeat, strict=True)
    labels = [f"{stimulus} {kept.run_labels[run]} {repeat + 1}" for stimulus, run, repeat in shown]
    about = describe_map(
        "Responses to single stimuli: betas of a general linear model, in the order of the table beside this file",
        describe_sources(unit, session),
        space=describe_space(space, unit.runs[0].bold[0]),
        maps=labels,
        statistic="regression weight",
        units=BETA_UNITS[options.scaling],
        parameters=describe_parameters(options),
        versions=list_versions(),
    )
    outputs += write_maps(names.beta_map(session.output, unit, options.model), data, labels, space, about)
    return [*outputs, *write_trials(names.beta_trials(session.output, unit, options.model), kept, about)]


def write_run_design(
    run: Run, trials: Trials, nuisance: Array, nuisance_names: tuple[str, ...], session: Session
) -> list[Path]:
    """Write a run's design matrix: a regressor for each trial, named by stimulus and onset, then the nuisance."""
    from dnnbrain_app.responses.design import build_design

    options = session.config.responses
    events = build_design(trials.onset, trials.duration, run.frame_times, options.hrf)
    titles = [f"{stimulus} @ {onset:g} s" for stimulus, onset in zip(trials.stimulus, trials.onset, strict=True)]
    matrix = dict(zip([*titles, *nuisance_names], np.c_[events, nuisance].T, strict=True))
    about = describe_map(
        "Design matrix: a regressor for each trial (named by stimulus and onset), then the nuisance regressors",
        [make_uri(file, session.roots) for file in (run.events, run.confounds) if file],
        parameters=describe_parameters(options),
    )
    return write_design(names.design_table(session.output, run), run.frame_times, matrix, about)


def read_responses(
    unit: Unit, space: BrainSpace, atlas: Atlas | None, stimuli: StimulusSet, session: Session
) -> Responses:
    """Read the betas and average the repeats of each stimulus."""
    from dnnbrain_app.responses.glm import average_repeats

    model = session.config.responses.model
    trials = read_trials(names.beta_trials(session.output, unit, model))
    betas = Betas(read_maps(names.beta_map(session.output, unit, model), space), trials, space, model)
    shown = stimuli.take(trials.stimulus)
    return Responses(unit, space, atlas, trials, shown, average_repeats(betas.data, trials, shown.ids))


def run_encoding(responses: Responses, activations: Activations, session: Session) -> list[Path]:
    """Predict each voxel from each layer by ridge regression; write maps, and means over regions."""
    from dnnbrain_app.analyses.encoding import score_encoding
    from dnnbrain_app.analyses.folds import group_stimuli, make_folds, merge_groups

    options, unit, stimuli = session.config.encoding, responses.unit, responses.stimuli
    copies = len(stimuli) - len(set(stimuli.digests))
    if copies:
        logger.warning("%s: %d stimuli are copies of others; copies stay in one fold", unit.label, copies)
    groups = merge_groups(
        group_stimuli(responses.trials, stimuli.ids, options.folds_by, stimuli.attributes), np.array(stimuli.digests)
    )
    rng = np.random.default_rng(session.config.run.random_seed)
    folds = make_folds(len(stimuli), options.n_folds, rng, groups)
    scores = score_encoding(
        activations.network,
        activations.layers,
        responses.Y,
        folds,
        options,
        rng=rng,
        memory=session.memory // ANALYSIS_SHARE,
        n_jobs=session.n_cpus,
        progress=lambda done, total: session.progress(f"{unit.label}: encoding, folds x layers", done, total),
    )
    scheme = {
        "Folds": len(folds),
        "KeptTogether": options.folds_by,
        "Seed": session.config.run.random_seed,
        "Penalty": "per voxel, by generalised cross-validation in the training folds",
    }
    maps = {"r": scores.r, "rsquared": scores.rsquared, "alpha": scores.alpha, "bestlayer": scores.best_layer[None]}
    outputs = []
    for stat, values in maps.items():
        titles = ("best layer",) if stat == "bestlayer" else scores.layers
        about = describe_analysis(responses, activations, session, ENCODING_MAPS[stat], titles)
        about |= {"Statistic": stat, "CrossValidation": scheme, "Parameters": describe_parameters(options)}
        if stat == "alpha":
            about["EdgeFraction"] = round(scores.edge_fraction, 4)
        stem = names.encoding_map(session.output, unit, activations.network, stat)
        outputs += write_maps(stem, values, titles, responses.space, about)
    if responses.atlas is not None:
        outputs += write_encoding_regions(scores, responses, activations, session)
    return outputs


def write_encoding_regions(
    scores: EncodingScores, responses: Responses, activations: Activations, session: Session
) -> list[Path]:
    """Write each layer's mean score over the voxels of each region."""
    atlas, r = responses.atlas, scores.r
    assert atlas is not None  # the caller asked
    used = {region: mask & np.isfinite(r).all(axis=0) for region, mask in atlas.regions.items()}
    means = {
        "r": np.column_stack([_mean(r[:, mask]) for mask in used.values()]),
        "rsquared": np.column_stack([_mean(scores.rsquared[:, mask]) for mask in used.values()]),
        "n_voxels": np.array([mask.sum() for mask in used.values()]),
    }
    about = describe_analysis(responses, activations, session, "Encoding scores: means over the voxels of a region") | {
        "r": {"Description": ENCODING_MAPS["r"]},
        "rsquared": {"Description": ENCODING_MAPS["rsquared"]},
        "n_voxels": {"Description": "Voxels with a score"},
    }
    path = names.region_table(session.output, responses.unit, atlas.name, activations.network, "encoding")
    return write_region_table(path, scores.layers, list(used), means, about)


def run_rsa(responses: Responses, activations: Activations, session: Session) -> list[Path]:
    """Compare the representational geometry of each layer with that of each region."""
    from dnnbrain_app.analyses.rdms import compute_layer_rdm, compute_rdm
    from dnnbrain_app.analyses.rsa import require_room, score_rsa

    unit, atlas, items = responses.unit, responses.atlas, responses.stimuli.ids
    if atlas is None:
        raise UsageError("--analysis rsa compares regions; name an atlas with --atlas")
    memory = session.memory // 2
    require_room(len(items), len(activations.names), len(atlas.regions), memory)
    patterns = {name: responses.Y[:, mask] for name, mask in atlas.regions.items()}
    region_rdms = gather_rdms(partial(compute_rdm, Y, items, name) for name, Y in patterns.items())
    layer_rdms = gather_rdms(partial(compute_layer_rdm, gram, items, memory) for gram in activations.layers)
    scores = score_rsa(activations.network, layer_rdms, region_rdms, session.config.rsa.comparisons)
    table = describe_analysis(responses, activations, session, "Similarity between RDMs of layers and of regions")
    brain = describe_map(
        "RDMs of regions: 1 - Pearson correlation between response patterns",
        describe_sources(unit, session),
        parameters=describe_parameters(session.config.responses),
        versions=list_versions(),
    )
    network = describe_map(  # says nothing of a space, as the units of all spaces write this file
        "RDMs of layers: 1 - Pearson correlation over units",
        [make_uri(run.events, session.roots) for run in unit.runs],
        network=activations.network,
        weights=activations.provenance,
        layers=activations.names,
        versions=list_versions(),
    ) | {"Responses": describe_parameters(session.config.responses)}
    return [
        *write_region_table(
            names.region_table(session.output, unit, atlas.name, activations.network, "rsa"),
            scores.layers,
            scores.regions,
            scores.similarity,
            table | {"Parameters": describe_parameters(session.config.rsa)},
        ),
        *write_rdms(names.region_rdms(session.output, unit, atlas.name), region_rdms, brain, "bRDM"),
        *write_rdms(names.layer_rdms(session.output, unit, activations.network), layer_rdms, network, "dRDM"),
    ]


def gather_rdms(computations: Iterable[Callable[[], Rdm]]) -> list[Rdm]:
    """Compute RDMs; one that cannot be (a region outside the field of view, a silent layer) is left out and told.

    Raises
    ------
    BadDataError
        None can be computed.
    """
    rdms: list[Rdm] = []
    reason: BadDataError | None = None
    for compute in computations:
        try:
            rdms.append(compute())
        except BadDataError as error:
            reason = error
            logger.warning("%s; left out of the RSA", error)
    if reason is not None and not rdms:
        raise reason
    return rdms


ANALYSES: dict[str, Callable[[Responses, Activations, Session], list[Path]]] = {
    "encoding": run_encoding,
    "rsa": run_rsa,
}


# What the sidecars say -----------------------------------------------------------------------------------------------


def describe_sources(unit: Unit, session: Session) -> list[str]:
    """Name the inputs of a unit as BIDS URIs."""
    files = [file for run in unit.runs for file in (*run.bold, run.events, run.confounds) if file]
    return [make_uri(file, session.roots) for file in files]


def describe_analysis(
    responses: Responses, activations: Activations, session: Session, description: str, maps: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Say what the outputs of all analyses have in common."""
    return describe_map(
        description,
        describe_sources(responses.unit, session),
        space=describe_space(responses.space, responses.unit.runs[0].bold[0]),
        maps=maps,
        network=activations.network,
        weights=activations.provenance,
        layers=activations.names,
        versions=list_versions(),
    )


def describe_parameters(options: Any) -> dict[str, Any]:
    """Spell options as the configuration file does."""
    return {name: getattr(options, name) for name in type(options).__slots__}


def _mean(values: Array) -> Array:
    """Mean over columns; NaN, without a warning, where there is none."""
    return values.mean(axis=1) if values.shape[1] else np.full(len(values), np.nan)

"""The stages that turn runs into what the analyses predict: betas and their reliability, or the volumes themselves."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dnnbrain_app import __version__
from dnnbrain_app.activations import FROM_FILE, gather_frames
from dnnbrain_app.config import Config
from dnnbrain_app.dataset.betas import read_betas
from dnnbrain_app.dataset.confounds import read_confounds
from dnnbrain_app.dataset.images import read_bold
from dnnbrain_app.derivatives import names
from dnnbrain_app.derivatives.ledger import digest_key, stamp
from dnnbrain_app.derivatives.maps import delete_maps, name_maps, read_maps, write_maps
from dnnbrain_app.derivatives.sidecars import describe_map, describe_space, list_versions, make_uri
from dnnbrain_app.derivatives.tables import read_trials, write_design, write_trials
from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import (
    Activations,
    Array,
    Atlas,
    Betas,
    BrainSpace,
    Gram,
    Grams,
    Run,
    StimulusSet,
    Trials,
    Unit,
)
from dnnbrain_app.responses.options import ResponseOptions
from dnnbrain_app.session import Session
from dnnbrain_app.stimuli.frames import expand_trials

if TYPE_CHECKING:
    from dnnbrain_app.responses.runs import RunData
    from dnnbrain_app.responses.timeseries import TimeSeries

# The room of responses imports nilearn's models and scikit-learn: only where it is needed.

logger = logging.getLogger(__name__)
BETA_UNITS = {
    "zscore": "standard deviations of the voxel over its run",
    "percent": "percent of the voxel's mean over its run",
    "none": "as the preprocessed data",
}
RESPONSE_MAPS = {
    "noiseceiling": (
        "Share of the variance of responses, averaged over repeats, that the stimuli explain: the highest R squared "
        "that a model can be expected to reach; its root is the highest r"
    ),
    "ncsnr": "Standard deviation of the responses over stimuli, of that of noise over trials (Allen et al. 2022)",
    "reliability": "Split-half reliability of the averaged responses (Spearman-Brown), mean over random halves",
    "hrf": "Number of the voxel's haemodynamic response in the library, from 1; 1 is the assumed one",
    "fraction": "Length of the voxel's ridge solution, of the ordinary one",
}
N_SPLITS = 25  # random halves; more change the mean little
BETAS_SHARE = 3  # the part of the memory that betas may take before they go to the disk


@dataclass(frozen=True, slots=True, eq=False)
class Responses:
    """What the brain did: a row a stimulus (repeats averaged) or a volume, and where the columns lie.

    With `series`, rows are volumes, and the activations of the stimuli must be convolved (`convolve_activations`);
    `run_groups` then says which runs have shown the same stimuli.
    """

    unit: Unit
    space: BrainSpace
    atlas: Atlas | None
    trials: Trials
    stimuli: StimulusSet
    Y: Array
    series: TimeSeries | None = None
    run_groups: Array | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RunReader:
    """The data of a unit's runs, read anew each time they are gone through, one in memory at a time."""

    unit: Unit
    space: BrainSpace
    nuisances: Sequence[Array]
    session: Session
    columns: slice | None = None

    def __iter__(self) -> Iterator[RunData]:
        from dnnbrain_app.responses.runs import RunData

        for number, (run, nuisance) in enumerate(zip(self.unit.runs, self.nuisances, strict=True)):
            self.session.progress(f"{self.unit.label}: runs", number, len(self.unit.runs))
            yield RunData(read_bold(run, self.space, self.columns), run.frame_times, nuisance)


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """Betas (n_rows, n_voxels), the trial of each row, maps of what was chosen for each voxel, and more to tell."""

    betas: Array
    trials: Trials
    maps: dict[str, Array] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)


def key_responses(unit: Unit, config: Config) -> str:
    """Digest all that the betas depend on."""
    files = [file for run in unit.runs for file in (*run.bold, run.events, run.confounds, run.mask) if file]
    timing = [(run.repetition_time, run.start_time) for run in unit.runs]
    model = replace(config.responses, min_reliability=0.0)  # a choice among voxels that are there already
    shown = [config.stimuli.column, config.stimuli.trial_filter]
    return digest_key([__version__, list(map(stamp, files)), timing, model, shown])


def estimate_responses(unit: Unit, trials: Trials, space: BrainSpace, session: Session) -> list[Path]:
    """Estimate a response to each trial; write them, what each is, how reliable they are, and the designs."""
    options = session.config.responses
    outputs: list[Path] = []
    if options.model == "precomputed":
        shown = session.config.stimuli
        fit = Fit(read_betas(unit, space, shown.column, shown.trial_filter), trials)
    else:
        reader, outputs = write_designs(unit, trials, space, session)
        if options.model == "timeseries":
            return outputs
        fit = fit_model(reader, trials, session)
    kept = fit.trials
    rows = zip(kept.stimulus, kept.run, kept.repeat, strict=True)
    labels = [f"{stimulus} {kept.run_labels[run]} {repeat + 1}" for stimulus, run, repeat in rows]
    text = "Responses to single stimuli, in the order of the table beside this file"
    about = describe_responses(text, unit, space, session)
    about |= {"Maps": labels, **fit.about}
    if options.model != "precomputed":
        about |= {"Statistic": "regression weight", "Units": BETA_UNITS[options.scaling]}
    outputs += write_maps(names.beta_map(session.output, unit, options.model), fit.betas, labels, space, about)
    outputs += write_trials(names.beta_trials(session.output, unit, options.model), kept, about)
    maps = {**fit.maps, **measure_reliability(fit.betas, kept, session)}
    return outputs + write_response_maps(maps, unit, kept, space, session)


def write_designs(unit: Unit, trials: Trials, space: BrainSpace, session: Session) -> tuple[RunReader, list[Path]]:
    """Write the design of each run; returns with it how its data are read."""
    from dnnbrain_app.responses.nuisance import build_nuisance

    options, outputs, nuisances = session.config.responses, [], []
    bare = [run.label for run in unit.runs if run.confounds is None]
    if bare and options.motion:
        text = "%d of %d runs (%s, ...) have no confounds file: their nuisance is drifts and a constant"
        logger.warning(text, len(bare), len(unit.runs), bare[0])
    for number, run in enumerate(unit.runs):
        nuisance, columns = build_nuisance(read_confounds(run), run.frame_times, options)
        outputs += write_run_design(run, trials.take(trials.run == number), nuisance, columns, session)
        nuisances.append(nuisance)
    return RunReader(unit, space, nuisances, session), outputs


def write_run_design(
    run: Run, trials: Trials, nuisance: Array, nuisance_names: tuple[str, ...], session: Session
) -> list[Path]:
    """Write a run's design matrix: a regressor for each trial, named by stimulus and onset, then the nuisance."""
    options = session.config.responses
    titles, X = (build_sums if options.model == "timeseries" else build_regressors)(run, trials, options)
    matrix = dict(zip([*titles, *nuisance_names], np.c_[X, nuisance].T, strict=True))
    about = describe_map(
        "Design matrix: a regressor for each trial (named by stimulus and onset), then the nuisance regressors",
        [make_uri(file, session.roots) for file in (run.events, run.confounds) if file],
        parameters=describe_parameters(options),
    )
    about |= {"Nuisance": list(nuisance_names)}
    return write_design(names.design_table(session.output, run), run.frame_times, matrix, about)


def build_regressors(run: Run, trials: Trials, options: ResponseOptions) -> tuple[list[str], Array]:
    """Build the regressor of each trial, then their derivatives."""
    from dnnbrain_app.responses.design import build_derivatives, build_design

    events = trials.onset, trials.duration, run.frame_times, options.hrf
    titles = [f"{stimulus} @ {onset:g} s" for stimulus, onset in zip(trials.stimulus, trials.onset, strict=True)]
    X, D = build_design(*events), build_derivatives(*events, np.eye(len(trials), dtype=bool))
    derived = [f"{title}, {name}" for name in ("derivative", "dispersion") for title in titles]
    return [*titles, *derived[: D.shape[1]]], np.c_[X, D]


def build_sums(run: Run, trials: Trials, options: ResponseOptions) -> tuple[list[str], Array]:
    """Build the regressors of a time series: anything shown, at each delay."""
    from dnnbrain_app.responses.timeseries import convolve_trials

    parts = convolve_trials(trials.onset, trials.duration, run.frame_times, options)
    X = np.column_stack([part.sum(axis=1) for part in parts])
    delays = [f"all stimuli, {delay} volumes before" for delay in range(1, X.shape[1])]
    return ["all stimuli", *delays], X


def fit_model(reader: RunReader, trials: Trials, session: Session) -> Fit:
    """Estimate betas, of as many voxels at once as fit the memory."""
    from dnnbrain_app.responses.glm import estimate_betas

    options, n_voxels = session.config.responses, reader.space.n_voxels
    if options.model == "glmsingle":
        return fit_glmsingle(reader, trials, session)
    slabs = divide_voxels(reader.unit, trials, n_voxels, session)
    betas: Array | None = None
    for number, columns in enumerate(slabs):
        if len(slabs) > 1:
            session.progress(f"{reader.unit.label}: slabs of voxels", number, len(slabs))
        part, kept = estimate_betas(replace(reader, columns=columns), trials, options)
        if len(slabs) == 1:
            return Fit(part, kept)
        if betas is None:
            betas = allocate((len(part), n_voxels), session)
        betas[:, columns] = part
    assert betas is not None  # there are voxels
    return Fit(betas, kept)


def fit_glmsingle(reader: RunReader, trials: Trials, session: Session) -> Fit:
    """Estimate betas by what repeats in other runs prove to help; this takes all voxels at once."""
    from dnnbrain_app.responses.glmsingle import estimate_glmsingle

    fit = estimate_glmsingle(reader, trials, session.config.responses)
    fit.betas[:, np.isnan(fit.betas.sum(axis=0))] = np.nan
    maps = {"hrf": np.where(np.isnan(fit.betas[0]), np.nan, fit.hrf + 1.0)}
    if not np.isnan(fit.fraction).all():
        maps["fraction"] = fit.fraction
    return Fit(fit.betas, trials.take(fit.rows), maps, {"NoiseRegressors": fit.n_components})


def divide_voxels(unit: Unit, trials: Trials, n_voxels: int, session: Session) -> list[slice]:
    """Divide the voxels so that what a model keeps of each fits half of the memory."""
    longest = max(run.n_volumes for run in unit.runs)
    n_stimuli = len(set(trials.stimulus))
    each = 4.0 * longest + 4.0 * len(trials) + 32.0 * n_stimuli * (session.config.responses.model == "condition")
    n_slabs = int(np.ceil(each * n_voxels / (session.memory / 2)))
    width = -(-n_voxels // max(n_slabs, 1))
    return [slice(start, min(start + width, n_voxels)) for start in range(0, n_voxels, width)]


def allocate(shape: tuple[int, int], session: Session) -> Array:
    """Make room for betas, on the disk if they are many."""
    if 4 * shape[0] * shape[1] <= session.memory // BETAS_SHARE:
        return np.empty(shape, dtype=np.float32)
    with tempfile.TemporaryFile(dir=session.config.run.work_dir) as file:  # gone with the array
        return np.memmap(file, dtype=np.float32, mode="w+", shape=shape)


def measure_reliability(data: Array, trials: Trials, session: Session) -> dict[str, Array]:
    """Estimate what part of the responses comes back when a stimulus does; nothing where none does."""
    from dnnbrain_app.responses.reliability import correlate_halves, estimate_noise_ceiling

    if count_repeats(trials)["Repeated"] < 2:
        return {}
    ceiling = estimate_noise_ceiling(data, trials.stimulus, trials.run)
    rng = np.random.default_rng(session.config.run.random_seed)
    halves = correlate_halves(data, trials.stimulus, trials.run, rng, n_splits=N_SPLITS)
    return {"noiseceiling": ceiling.ceiling, "ncsnr": ceiling.ncsnr, "reliability": halves}


def write_response_maps(
    maps: dict[str, Array], unit: Unit, trials: Trials, space: BrainSpace, session: Session
) -> list[Path]:
    """Write maps of how good the responses are; what an earlier run had and this one lacks is removed."""
    outputs = []
    for stat in names.RESPONSE_STATS:
        stem = names.response_map(session.output, unit, session.config.responses.model, stat)
        if stat not in maps:
            delete_maps(stem, space)
            continue
        about = describe_responses(RESPONSE_MAPS[stat], unit, space, session)
        about |= {"Maps": [stat], "Statistic": stat, "Repeats": count_repeats(trials)}
        outputs += write_maps(stem, maps[stat][np.newaxis], [stat], space, about)
    return outputs


def count_repeats(trials: Trials) -> dict[str, int]:
    """Count the stimuli, those that were shown again, and the trials."""
    counts = np.unique(trials.stimulus.astype(str), return_counts=True)[1]
    return {"Stimuli": len(counts), "Repeated": int((counts > 1).sum()), "Trials": len(trials)}


def read_responses(
    unit: Unit, space: BrainSpace, atlas: Atlas | None, stimuli: StimulusSet, session: Session
) -> Responses:
    """Read the betas and average the repeats of each stimulus."""
    from dnnbrain_app.responses.glm import average_repeats

    model = session.config.responses.model
    trials = read_trials(names.beta_trials(session.output, unit, model))
    betas = Betas(read_maps(names.beta_map(session.output, unit, model), space), trials, space, model)
    shown = stimuli.take(trials.stimulus)
    Y = average_repeats(betas.data, trials, shown.ids)
    Y[:, find_unreliable(unit, space, session)] = np.nan
    return Responses(unit, space, atlas, trials, shown, Y)


def find_unreliable(unit: Unit, space: BrainSpace, session: Session) -> Array:
    """Find the voxels to be left out by ``--min-reliability``.

    Raises
    ------
    BadDataError
        If no stimulus was repeated, or no voxel is left.
    """
    options = session.config.responses
    if not options.min_reliability:
        return np.zeros(space.n_voxels, dtype=bool)
    stem = names.response_map(session.output, unit, options.model, "reliability")
    if not name_maps(stem, space)[0].exists():
        raise BadDataError(
            f"{unit.label}: --min-reliability {options.min_reliability:g} needs stimuli that were shown twice or more"
        )
    reliable = read_maps(stem, space)[0] >= options.min_reliability  # not where it is NaN
    if not reliable.any():
        raise BadDataError(f"{unit.label}: no voxel reaches --min-reliability {options.min_reliability:g}")
    logger.info("%s: %d of %d voxels are reliable enough", unit.label, reliable.sum(), len(reliable))
    return np.asarray(~reliable)


def read_timeseries(
    network: str,
    unit: Unit,
    space: BrainSpace,
    atlas: Atlas | None,
    trials: Trials,
    stimuli: StimulusSet,
    session: Session,
) -> Responses:
    """Read the runs themselves, without nuisance; what a network of images sees of a video are its frames."""
    from dnnbrain_app.analyses.folds import group_runs
    from dnnbrain_app.responses.nuisance import build_nuisance
    from dnnbrain_app.responses.timeseries import build_timeseries

    options = session.config.responses
    nuisances = [build_nuisance(read_confounds(run), run.frame_times, options)[0] for run in unit.runs]
    shown, seen = show_frames(network, trials, stimuli, session)
    series = build_timeseries(RunReader(unit, space, nuisances, session), shown, seen.ids, options)
    contents = np.array(stimuli.digests, dtype=object)[stimuli.index(trials.stimulus)]
    groups = group_runs(replace(trials, stimulus=contents))
    return Responses(unit, space, atlas, trials, seen, series.Y, series, groups)


def show_frames(network: str, trials: Trials, stimuli: StimulusSet, session: Session) -> tuple[Trials, StimulusSet]:
    """Take clips apart into frames, each a trial at its time, for a network of images."""
    from dnnbrain_app.networks.sources import takes_clips

    if network.startswith(FROM_FILE) or takes_clips(network):
        return trials, stimuli
    frames = gather_frames(stimuli, session)
    return expand_trials(trials, frames), frames.stimuli


def convolve_activations(activations: Activations, series: TimeSeries) -> Activations:
    """Turn activations by stimuli into activations by volumes, layer by layer as they are asked for."""
    from dnnbrain_app.responses.timeseries import convolve_features, convolve_gram

    def convolve(i: int) -> Gram:
        gram = activations.layers[i]
        if gram.K is not None:
            K = convolve_gram(gram.K, series)
        else:
            assert gram.X is not None  # one of both is there
            X = convolve_features(gram.X, series)
            K = X @ X.T
        return replace(gram, K=K, X=None, row_sums=np.zeros(len(K)))  # the sums are for RDMs of stimuli

    volumes = tuple(map(str, range(len(series.Y))))
    return replace(activations, stimuli=volumes, layers=Grams(len(activations.layers), convolve))


# What the sidecars say -----------------------------------------------------------------------------------------------


def describe_sources(unit: Unit, session: Session) -> list[str]:
    """Name the inputs of a unit as BIDS URIs."""
    files = [file for run in unit.runs for file in (*run.bold, run.events, run.confounds) if file]
    return [make_uri(file, session.roots) for file in files]


def describe_responses(description: str, unit: Unit, space: BrainSpace, session: Session) -> dict[str, Any]:
    """Say what maps of responses have in common."""
    return describe_map(
        description,
        describe_sources(unit, session),
        space=describe_space(space, unit.runs[0].bold[0]),
        parameters=describe_model(session.config.responses),
        versions=list_versions(),
    )


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


def describe_model(options: ResponseOptions) -> dict[str, Any]:
    """Spell the options that the model has used."""
    if options.model == "precomputed":
        return {"model": options.model, "min_reliability": options.min_reliability}
    return describe_parameters(options)


def describe_parameters(options: Any) -> dict[str, Any]:
    """Spell options as the configuration file does."""
    return {name: getattr(options, name) for name in type(options).__slots__}

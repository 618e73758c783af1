"""The analyses of a unit: each takes responses and activations, calls one piece of science, and writes what came out.

`workflow` says in which order, and which stages are done already. A stage returns the files it wrote.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dnnbrain_app import __version__
from dnnbrain_app.activations import ANALYSIS_SHARE, identify_features
from dnnbrain_app.config import Config
from dnnbrain_app.dataset.atlases import list_atlas_files
from dnnbrain_app.derivatives import names
from dnnbrain_app.derivatives.ledger import digest_key, stamp
from dnnbrain_app.derivatives.maps import write_maps
from dnnbrain_app.derivatives.matrices import write_rdms
from dnnbrain_app.derivatives.sidecars import describe_map, describe_space, list_versions, make_uri
from dnnbrain_app.derivatives.tables import write_region_table
from dnnbrain_app.errors import BadDataError, MissingInputError, UsageError
from dnnbrain_app.records import Activations, Array, EncodingScores, Rdm, StimulusSet
from dnnbrain_app.response_stages import Responses, describe_model, describe_parameters, describe_sources
from dnnbrain_app.session import Session

# Rooms that import torch or scikit-learn are imported where they are used: a run that finds all its results there
# must not wait for them.

logger = logging.getLogger(__name__)
ENCODING_MAPS = {
    "r": "Pearson correlation between predicted and measured responses to what was held out, mean over folds",
    "rsquared": "Held-out R squared: 1 - residual over total sum of squares, the total around the training mean",
    "alpha": "Ridge penalty in units of the training kernel's mean eigenvalue, geometric mean over folds",
    "bestlayer": "Number of the layer (from 1) with the highest correlation; 0 where no layer is significant",
}


def choose_analyses(config: Config) -> tuple[str, ...]:
    """Name the analyses to run: as asked; else encoding, and RSA where there are regions with responses to stimuli."""
    has_patterns = config.dataset.atlas and config.responses.model != "timeseries"
    return config.run.analyses or (("encoding", "rsa") if has_patterns else ("encoding",))


def check_analyses(config: Config) -> None:
    """Refuse what cannot be computed or written, before anything is."""
    atlases = config.dataset.atlas
    if "rsa" in choose_analyses(config) and config.responses.model == "timeseries":
        raise UsageError("--analysis rsa compares responses to stimuli; --response-model timeseries estimates none")
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


def find_output(config: Config) -> Path:
    """Return the output dataset: OUTPUT_DIR, or a folder in it named by the settings, the same for all participants."""
    if config.run.output_layout == "bids":
        return config.output_dir
    dataset = replace(config.dataset, participants=())
    rooms = [config.networks, config.responses, config.encoding, config.rsa, dataset, config.stimuli]
    return config.output_dir / f"dnnbrain-{digest_key([__version__, rooms, config.run.random_seed])[:8]}"


def key_analysis(name: str, network: str, responses: str, stimuli: StimulusSet, session: Session) -> str:
    """Digest all that an analysis of a network depends on; `responses` is the key of the betas."""
    config = session.config
    seen = [identify_features(network, stimuli, session), stimuli.ids, stimuli.digests]
    regions = [list(map(stamp, list_atlas_files(config.dataset.atlas))), config.dataset.rois]
    groups = list(stimuli.attributes.get(config.encoding.folds_by, ()))
    own = {"encoding": [config.encoding, config.run.random_seed, groups], "rsa": [config.rsa]}
    return digest_key([name, responses, config.responses.min_reliability, seen, regions, own[name]])


def run_encoding(responses: Responses, activations: Activations, session: Session) -> list[Path]:
    """Predict each voxel from each layer by ridge regression; write maps, and means over regions."""
    from dnnbrain_app.analyses.autocorrelation import estimate_noise
    from dnnbrain_app.analyses.encoding import score_encoding

    options, unit, series = session.config.encoding, responses.unit, responses.series
    rng = np.random.default_rng(session.config.run.random_seed)
    folds = fold_stimuli(responses, session, rng) if series is None else fold_volumes(responses, session, rng)
    rows = np.sort(np.concatenate(folds))
    if len(rows) < len(responses.Y):  # volumes between blocks are in no fold
        activations = activations.take(tuple(activations.stimuli[i] for i in rows))
        folds = [np.searchsorted(rows, fold) for fold in folds]
    scores = score_encoding(
        activations.network,
        activations.layers,
        responses.Y if len(rows) == len(responses.Y) else responses.Y[rows],
        folds,
        options,
        rng=rng,
        noise=None if series is None else estimate_noise(series.Y, series.run, series.Q).take(rows),
        memory=session.memory // ANALYSIS_SHARE,
        n_jobs=session.n_cpus,
        progress=lambda done, total: session.progress(f"{unit.label}: encoding, folds x layers", done, total),
    )
    scheme = {
        "Folds": len(folds),
        "KeptTogether": options.folds_by if series is None else "run",
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


def fold_stimuli(responses: Responses, session: Session, rng: np.random.Generator) -> list[Array]:
    """Divide the stimuli into folds; what must stay together does."""
    from dnnbrain_app.analyses.folds import group_stimuli, make_folds, merge_groups

    options, stimuli = session.config.encoding, responses.stimuli
    copies = len(stimuli) - len(set(stimuli.digests))
    if copies:
        logger.warning("%s: %d stimuli are copies of others; copies stay in one fold", responses.unit.label, copies)
    groups = merge_groups(
        group_stimuli(responses.trials, stimuli.ids, options.folds_by, stimuli.attributes), np.array(stimuli.digests)
    )
    return make_folds(len(stimuli), options.n_folds, rng, groups)


def fold_volumes(responses: Responses, session: Session, rng: np.random.Generator) -> list[Array]:
    """Divide the volumes into folds of whole runs, or a single run into blocks."""
    from dnnbrain_app.analyses.folds import make_volume_folds

    assert responses.series is not None  # the caller asked
    assert responses.run_groups is not None
    step = min(run.repetition_time for run in responses.unit.runs)
    n_folds = session.config.encoding.n_folds
    return make_volume_folds(responses.series.run, responses.run_groups, step, n_folds, rng)


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
        parameters=describe_model(session.config.responses),
        versions=list_versions(),
    )
    network = describe_map(  # says nothing of a space, as the units of all spaces write this file
        "RDMs of layers: 1 - Pearson correlation over units",
        [make_uri(run.events, session.roots) for run in unit.runs],
        network=activations.network,
        weights=activations.provenance,
        layers=activations.names,
        versions=list_versions(),
    ) | {"Responses": describe_model(session.config.responses)}
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


def _mean(values: Array) -> Array:
    """Mean over columns; NaN, without a warning, where there is none."""
    return values.mean(axis=1) if values.shape[1] else np.full(len(values), np.nan)

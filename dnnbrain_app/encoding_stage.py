"""Encoding: from responses and activations to maps of how well each layer predicts each voxel."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dnnbrain_app.activations import ANALYSIS_SHARE
from dnnbrain_app.derivatives import names
from dnnbrain_app.derivatives.maps import delete_maps, name_maps, read_maps, write_maps
from dnnbrain_app.derivatives.tables import write_region_table
from dnnbrain_app.records import Activations, Array, EncodingScores
from dnnbrain_app.response_stages import Responses, describe_analysis, describe_parameters
from dnnbrain_app.session import Session

logger = logging.getLogger(__name__)
ENCODING_MAPS = {
    "r": "Pearson correlation between predicted and measured responses to what was held out, mean over folds",
    "rsquared": "Held-out R squared: 1 - residual over total sum of squares, the total around the training mean",
    "alpha": "Ridge penalty in units of the training kernel's mean eigenvalue, geometric mean over folds",
    "bestlayer": "Number of the layer (from 1) with the highest correlation; 0 where no layer is significant",
    "p": "Probability of the layer's r or a higher one for a voxel whose stimuli are permuted",
    "q": "Lowest false discovery rate over voxels at which the layer's r is significant",
    "pfwe": "Probability that any voxel has the layer's r or a higher one if stimuli are permuted",
    "rnorm": "r over the root of the noise ceiling; NaN where the ceiling is below its floor",
    "rsquarednorm": "R squared over the noise ceiling; NaN where the ceiling is below its floor",
    "depth": "Mean of the layers' numbers (from 1), each weighted by its r; NaN where no layer is significant",
    "bestr": "r in each half of the folds by the layer that is best in the other half: free of the winner's luck",
    "confidence": "Share of resampled folds in which the best layer is best; NaN where no layer is significant",
}
PER_LAYER = ("r", "rsquared", "alpha", "p", "q", "pfwe", "rnorm", "rsquarednorm")


def run_encoding(responses: Responses, activations: Activations, session: Session) -> list[Path]:
    """Predict each voxel from each layer by ridge regression; write maps, and means over regions."""
    from dnnbrain_app.analyses.autocorrelation import estimate_noise
    from dnnbrain_app.analyses.encoding import score_encoding
    from dnnbrain_app.analyses.layer_choice import LEAST_FOLDS, choose_layers

    options, unit, series = session.config.encoding, responses.unit, responses.series
    rng = np.random.default_rng(session.config.run.random_seed)
    folds = fold_stimuli(responses, session, rng) if series is None else fold_volumes(responses, session, rng)
    rows = np.sort(np.concatenate(folds))
    if len(rows) < len(responses.Y):  # volumes between blocks are in no fold
        activations = activations.take(tuple(activations.stimuli[i] for i in rows))
        folds = [np.searchsorted(rows, fold) for fold in folds]
    Y = responses.Y if len(rows) == len(responses.Y) else responses.Y[rows]
    settings: dict[str, Any] = {
        "rng": rng,
        "noise": None if series is None else estimate_noise(series.Y, series.run, series.Q).take(rows),
        "memory": session.memory // ANALYSIS_SHARE,
        "n_jobs": session.n_cpus,
    }
    scores = score_encoding(
        activations.network,
        activations.layers,
        Y,
        folds,
        options,
        blocks=group_blocks(responses, session),
        progress=partial(session.progress, f"{unit.label}: encoding, folds x layers"),
        **settings,
    )
    maps = {"r": scores.r, "rsquared": scores.rsquared, "alpha": scores.alpha, "bestlayer": scores.best_layer[None]}
    maps |= tell_significance(scores) | normalise(scores, responses, session)
    if len(folds) >= LEAST_FOLDS and len(scores.layers) > 1:
        progress = partial(session.progress, f"{unit.label}: choice of layers, folds x layers")
        choice = choose_layers(activations.layers, Y, folds, scores, options, progress=progress, **settings)
        maps |= {"depth": choice.depth[None], "bestr": choice.r[None], "confidence": choice.confidence[None]}
    scheme = {
        "Folds": len(folds),
        "KeptTogether": options.folds_by if series is None else "run",
        "Seed": session.config.run.random_seed,
        "Penalty": "per voxel, by generalised cross-validation in the training folds",
    }
    outputs = write_encoding_maps(maps, scores, scheme, responses, activations, session)
    if responses.atlas is not None:
        outputs += write_encoding_regions(scores, responses, activations, session)
    return outputs


def write_encoding_maps(
    maps: dict[str, Array],
    scores: EncodingScores,
    scheme: dict[str, Any],
    responses: Responses,
    activations: Activations,
    session: Session,
) -> list[Path]:
    """Write the maps; those that only an earlier run had are removed."""
    outputs, unit = [], responses.unit
    for stat, values in maps.items():
        titles = scores.layers if stat in PER_LAYER else ("best layer",)
        about = describe_analysis(responses, activations, session, ENCODING_MAPS[stat], titles)
        about |= {"Statistic": stat, "CrossValidation": scheme}
        about["Parameters"] = describe_parameters(session.config.encoding)
        if stat == "alpha":
            about["EdgeFraction"] = round(scores.edge_fraction, 4)
        stem = names.encoding_map(session.output, unit, activations.network, stat)
        outputs += write_maps(stem, values, titles, responses.space, about)
    for stat in (stat for stat in names.ENCODING_MORE if stat not in maps):
        delete_maps(names.encoding_map(session.output, unit, activations.network, stat), responses.space)
    return outputs


def group_blocks(responses: Responses, session: Session) -> Array | None:
    """Return the runs or sessions that stimuli are permuted within, where folds keep these together."""
    from dnnbrain_app.analyses.folds import group_stimuli

    by = session.config.encoding.folds_by
    if responses.series is not None or by not in ("run", "session"):
        return None
    return group_stimuli(responses.trials, responses.stimuli.ids, by, {})


def tell_significance(scores: EncodingScores) -> dict[str, Array]:
    """Return the p values of each layer's r."""
    found = scores.layer_significance
    if found is None:
        return {}
    return {"p": found.p_value, "q": found.q_value} | ({} if found.p_fwe is None else {"pfwe": found.p_fwe})


def normalise(scores: EncodingScores, responses: Responses, session: Session) -> dict[str, Array]:
    """Divide scores by the noise ceiling, where stimuli were repeated."""
    from dnnbrain_app.analyses.normalising import normalise_scores

    model = session.config.responses.model
    stem = names.response_map(session.output, responses.unit, model, "noiseceiling")
    if responses.series is not None or not name_maps(stem, responses.space)[0].exists():
        return {}
    ceiling = read_maps(stem, responses.space)[0]
    r, rsquared = normalise_scores(scores.r, scores.rsquared, ceiling, session.config.encoding.ceiling_floor)
    return {"rnorm": r, "rsquarednorm": rsquared}


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


def _mean(values: Array) -> Array:
    """Mean over columns; NaN, without a warning, where there is none."""
    return values.mean(axis=1) if values.shape[1] else np.full(len(values), np.nan)

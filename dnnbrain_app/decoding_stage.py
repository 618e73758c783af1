"""Decoding: what stimuli are like, told from the responses of each region, or of the whole brain."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dnnbrain_app.derivatives import names
from dnnbrain_app.derivatives.files import write_json, write_table
from dnnbrain_app.derivatives.sidecars import describe_map, list_versions
from dnnbrain_app.errors import BadDataError, UnknownNameError, UsageError
from dnnbrain_app.records import Array
from dnnbrain_app.response_stages import Responses, describe_model, describe_parameters, describe_sources
from dnnbrain_app.session import Session

logger = logging.getLogger(__name__)
DECODING_COLUMNS = {
    "region": "Region of the atlas; brain: all voxels",
    "attribute": "Column of stimuli.tsv that is decoded",
    "decoder": "svc, logistic, lda for categories; ridge, lasso, ols for numbers",
    "measure": "accuracy, balanced_accuracy (mean over categories); r (mean over folds), rsquared",
    "score": "Of held-out stimuli",
    "chance": "Mean score if the attribute is permuted",
    "p": "Probability of the score or a higher one if the attribute is permuted",
    "n_stimuli": "Stimuli that have the attribute",
    "n_voxels": "Voxels with signal",
}


def run_decoding(responses: Responses, session: Session) -> list[Path]:
    """Decode attributes of the stimuli from the responses of each region; write a table, and confusion matrices.

    Raises
    ------
    UsageError
        No attribute is named.
    UnknownNameError
        The stimuli have no such attribute.
    """
    options, unit, stimuli = session.config.decoding, responses.unit, responses.stimuli
    if not options.attributes:
        there = ", ".join(stimuli.attributes) or "none: there is no stimuli.tsv"
        raise UsageError(f"--analysis decoding needs --attribute NAME; the stimuli have {there}")
    regions = responses.atlas.regions if responses.atlas else {"brain": np.ones(responses.Y.shape[1], dtype=bool)}
    rows: list[dict[str, Any]] = []
    confusion: dict[str, Any] = {}
    total = len(options.attributes) * len(regions)
    for attribute in options.attributes:
        if attribute not in stimuli.attributes:
            raise UnknownNameError("attribute of the stimuli", attribute, stimuli.attributes)
        for name, mask in regions.items():
            session.progress(f"{unit.label}: decoding, attributes x regions", len(confusion), total)
            found, matrix = decode_region(responses, attribute, name, mask, session)
            rows += found
            confusion[f"{attribute} {name}"] = matrix
    path = names.decoding_table(session.output, unit, responses.atlas.name if responses.atlas else "brain")
    write_table(path, {column: np.array([row[column] for row in rows]) for column in DECODING_COLUMNS})
    about = describe_map(
        "Decoding of attributes of the stimuli from responses to them, averaged over repeats",
        describe_sources(unit, session),
        parameters={**describe_parameters(options), "responses": describe_model(session.config.responses)},
        columns=DECODING_COLUMNS,
        versions=list_versions(),
    )
    write_json(names.sidecar(path), {**about, "Confusion": {key: value for key, value in confusion.items() if value}})
    return [path, names.sidecar(path)]


def decode_region(
    responses: Responses, attribute: str, region: str, mask: Array, session: Session
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Decode one attribute from one region: the rows of the table, and the confusion matrix of categories."""
    from dnnbrain_app.analyses.decoding import decode_attribute

    options = session.config.decoding
    target, known, is_number = read_target(responses.stimuli.attributes[attribute])
    X = responses.Y[known][:, mask]
    X = X[:, np.isfinite(X).all(axis=0)]
    if not X.shape[1]:
        logger.warning("region %s has no voxel with signal; left out of the decoding", region)
        return [], {}
    model = options.regressor if is_number else options.classifier
    rng = np.random.default_rng(session.config.run.random_seed)
    scores = decode_attribute(
        X,
        target,
        model,
        fold_known(responses, target, known, rng, session),
        rng=rng,
        n_permutations=options.n_permutations,
        n_components=options.n_components,
        scaling=options.scaling,
        n_jobs=session.n_cpus,
        progress=partial(session.progress, f"{responses.unit.label}: decoding {attribute} from {region}"),
    )
    shared: dict[str, Any] = {"region": region, "attribute": attribute, "decoder": model}
    shared |= {"n_stimuli": int(known.sum()), "n_voxels": X.shape[1]}
    rows = [
        {**shared, "measure": name, "score": value, "chance": scores.chance[name], "p": scores.p[name]}
        for name, value in scores.scores.items()
    ]
    return rows, {"Classes": list(scores.classes), "Counts": scores.confusion.tolist()} if scores.classes else {}


def read_target(values: Array) -> tuple[Array, Array, bool]:
    """Return the values that are known, where they are, and whether they are numbers; two numbers are categories."""
    is_number = np.issubdtype(values.dtype, np.number)
    known = np.isfinite(values) if is_number else values.astype(str) != "n/a"
    target = values[known]
    if is_number and len(np.unique(target)) > 2:
        return target, known, True
    return np.array([f"{value:g}" if is_number else str(value) for value in target], dtype=object), known, False


def fold_known(
    responses: Responses, target: Array, known: Array, rng: np.random.Generator, session: Session
) -> list[Array]:
    """Divide the stimuli that have the attribute into folds, categories evenly; what must stay together does."""
    from dnnbrain_app.analyses.balancing import make_balanced_folds
    from dnnbrain_app.analyses.folds import group_stimuli, make_folds, merge_groups

    options, stimuli = session.config.decoding, responses.stimuli
    groups = merge_groups(
        group_stimuli(responses.trials, stimuli.ids, options.folds_by, stimuli.attributes), np.array(stimuli.digests)
    )
    own = None if groups is None else groups[known]
    if np.issubdtype(target.dtype, np.number):
        return make_folds(len(target), options.n_folds, rng, own)
    try:
        return make_balanced_folds(target.astype(str), options.n_folds, rng, own)
    except BadDataError as error:
        raise BadDataError(f"{responses.unit.label}: {error}") from None

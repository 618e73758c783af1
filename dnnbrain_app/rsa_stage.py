"""RSA: how well the representational geometry of each layer agrees with that of each region."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np

from dnnbrain_app.derivatives import names
from dnnbrain_app.derivatives.maps import read_maps
from dnnbrain_app.derivatives.matrices import write_rdms
from dnnbrain_app.derivatives.sidecars import describe_map, list_versions, make_uri
from dnnbrain_app.derivatives.tables import write_region_table
from dnnbrain_app.errors import BadDataError, UsageError
from dnnbrain_app.records import Activations, Array, Rdm, Trials
from dnnbrain_app.response_stages import (
    Responses,
    describe_analysis,
    describe_model,
    describe_parameters,
    describe_sources,
)
from dnnbrain_app.session import Session

logger = logging.getLogger(__name__)
METRICS = {
    "correlation": "1 - Pearson correlation between patterns",
    "cosine": "1 - cosine of the angle between patterns",
    "sqeuclidean": "squared Euclidean distance between patterns, per voxel or unit",
    "mahalanobis": "squared Mahalanobis distance between patterns, per voxel, the noise from repeats",
    "crossnobis": "squared Mahalanobis distance between patterns, cross-validated over runs, per voxel",
}
TESTED = {
    "p": "Probability of the similarity or a higher one if stimuli are permuted",
    "p_fwe": "The same of any layer: corrected for the number of layers",
    "q": "Lowest false discovery rate over regions at which the layer counts, from p_fwe",
    "low": "Lower end of the 95 % interval over stimuli",
    "high": "Upper end of the 95 % interval over stimuli",
}
LEAST_STIMULI = 8  # of which bootstrap samples are samples


def run_rsa(responses: Responses, activations: Activations, session: Session) -> list[Path]:
    """Compare the representational geometry of each layer with that of each region."""
    from dnnbrain_app.analyses.rdms import compute_layer_rdm
    from dnnbrain_app.analyses.rsa import require_room, score_rsa

    unit, atlas, items, options = responses.unit, responses.atlas, responses.stimuli.ids, session.config.rsa
    if atlas is None:
        raise UsageError("--analysis rsa compares regions; name an atlas with --atlas")
    memory = session.memory // 2
    require_room(len(items), len(activations.names), len(atlas.regions), memory)
    metric = choose_metric(responses.trials, items, options.metric, session.config.responses.model)
    regions = compute_region_rdms(responses, metric, session)
    layers = gather_rdms(
        partial(compute_layer_rdm, gram, items, memory, options.layer_metric) for gram in activations.layers
    )
    scores = score_rsa(activations.network, layers, regions, options.comparisons)
    tested = choose_comparison(metric, options.comparisons)
    columns = {**scores.similarity, **infer(layers, regions, tested, f"{unit.label}: {activations.network}", session)}
    table = describe_analysis(responses, activations, session, "Similarity between RDMs of layers and of regions")
    table |= {"Parameters": describe_parameters(options), "Metric": metric, "Tested": tested}
    table |= {name: {"Description": f"{text}; of {tested}"} for name, text in TESTED.items() if name in columns}
    brain = describe_map(
        f"RDMs of regions: {METRICS[metric]}",
        describe_sources(unit, session),
        parameters=describe_model(session.config.responses),
        versions=list_versions(),
    )
    network = describe_map(  # says nothing of a space, as the units of all spaces write this file
        f"RDMs of layers: {METRICS[options.layer_metric]}",
        [make_uri(run.events, session.roots) for run in unit.runs],
        network=activations.network,
        weights=activations.provenance,
        layers=activations.names,
        versions=list_versions(),
    ) | {"Responses": describe_model(session.config.responses)}
    output, label = session.output, activations.network
    return [
        *write_region_table(
            names.region_table(output, unit, atlas.name, label, "rsa"), scores.layers, scores.regions, columns, table
        ),
        *write_rdms(names.region_rdms(output, unit, atlas.name, metric), regions, brain, "bRDM"),
        *write_rdms(names.layer_rdms(output, unit, label, options.layer_metric), layers, network, "dRDM"),
    ]


def choose_metric(trials: Trials, items: tuple[str, ...], metric: str, model: str) -> str:
    """Choose the distance between patterns: as asked; ``auto`` is crossnobis where each stimulus is in two runs."""
    from dnnbrain_app.analyses.crossnobis import can_cross

    if metric != "auto":
        return metric
    if model == "condition":  # a response a stimulus, over all runs
        return "correlation"
    rows, stimulus = number_trials(trials, items)
    return "crossnobis" if can_cross(stimulus, trials.run[rows], len(items)) else "correlation"


def choose_comparison(metric: str, comparisons: tuple[str, ...]) -> str:
    """Choose the comparison to be tested: that which suits the distances, if it was asked for, else the first."""
    suited = "whitened-cosine" if metric == "crossnobis" else "rho-a"
    return suited if suited in comparisons else comparisons[0]


def number_trials(trials: Trials, items: tuple[str, ...]) -> tuple[Array, Array]:
    """Return the rows of trials that show one of the items, and the number of the item that each shows."""
    position = {name: i for i, name in enumerate(items)}
    numbers = np.array([position.get(name, -1) for name in trials.stimulus], dtype=int)
    rows = np.flatnonzero(numbers >= 0)
    return rows, numbers[rows]


def compute_region_rdms(responses: Responses, metric: str, session: Session) -> list[Rdm]:
    """Compute the RDM of each region, from average responses or from those to single trials."""
    from dnnbrain_app.analyses.crossnobis import compute_crossnobis, compute_mahalanobis
    from dnnbrain_app.analyses.rdms import compute_rdm

    atlas, items, model = responses.atlas, responses.stimuli.ids, session.config.responses.model
    assert atlas is not None  # the caller asked
    if metric not in ("crossnobis", "mahalanobis"):
        return gather_rdms(
            partial(compute_rdm, responses.Y[:, mask], items, name, metric) for name, mask in atlas.regions.items()
        )
    rows, stimulus = number_trials(responses.trials, items)
    betas = read_maps(names.beta_map(session.output, responses.unit, model), responses.space)[rows]
    betas[:, np.isnan(responses.Y).all(axis=0)] = np.nan  # voxels that were left out
    run = responses.trials.run[rows]
    if metric == "crossnobis":
        return gather_rdms(
            partial(compute_crossnobis, betas[:, mask], stimulus, run, items, name)
            for name, mask in atlas.regions.items()
        )
    return gather_rdms(
        partial(compute_mahalanobis, betas[:, mask], stimulus, items, name) for name, mask in atlas.regions.items()
    )


def infer(layers: list[Rdm], regions: list[Rdm], tested: str, label: str, session: Session) -> dict[str, Array]:
    """Compute p values and intervals of one comparison, as far as they are asked for."""
    from dnnbrain_app.analyses.rsa_inference import permute_labels
    from dnnbrain_app.analyses.rsa_intervals import bootstrap_stimuli

    options, seed = session.config.rsa, session.config.run.random_seed
    columns: dict[str, Array] = {}
    if options.n_permutations:
        found = permute_labels(
            layers,
            regions,
            tested,
            n_permutations=options.n_permutations,
            rng=np.random.default_rng(seed),
            memory=session.memory // 4,
            progress=partial(session.progress, f"{label}: rsa, permutations"),
        )
        columns |= {"p": found.p, "p_fwe": found.p_fwe, "q": np.broadcast_to(found.q, found.p.shape)}
    if options.n_bootstraps and len(layers[0].items) >= LEAST_STIMULI:
        intervals = bootstrap_stimuli(
            layers,
            regions,
            tested,
            n_bootstraps=options.n_bootstraps,
            rng=np.random.default_rng(seed),
            progress=partial(session.progress, f"{label}: rsa, samples of stimuli"),
        )
        columns |= {"low": intervals.low, "high": intervals.high}
    return columns


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

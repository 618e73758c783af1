"""The stages of the group: what participants have in common, from what was written about each of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np

from dnnbrain_app import __version__
from dnnbrain_app.config import Config
from dnnbrain_app.dataset.betas import find_beta_units, read_beta_trials, read_betas
from dnnbrain_app.dataset.images import read_unit_space
from dnnbrain_app.derivatives import names
from dnnbrain_app.derivatives.ledger import digest_key, stamp
from dnnbrain_app.derivatives.maps import write_maps
from dnnbrain_app.derivatives.sidecars import describe_map, describe_space, list_versions, make_uri
from dnnbrain_app.errors import BadDataError, MissingInputError, UsageError
from dnnbrain_app.records import Array, BrainSpace, Unit
from dnnbrain_app.session import Session

logger = logging.getLogger(__name__)
CEILING_MAPS = {
    "lowerceiling": (
        "Correlation of a participant's responses to the shared stimuli with the average of the other participants, "
        "mean over participants: what a model of what they share should reach"
    ),
    "upperceiling": (
        "Correlation of a participant's responses to the shared stimuli with the average of all participants, mean "
        "over participants: what a model of what they share can reach"
    ),
}
LEAST_STIMULI = 3


def gather_group(config: Config, output: Path) -> list[list[Unit]]:
    """Find the responses that the participant level has written: the participants of each task and space.

    Raises
    ------
    UsageError
        The model estimates no responses.
    MissingInputError
        Nothing was written about any participant.
    """
    model = config.responses.model
    if model == "timeseries":
        raise UsageError("the group level compares responses; --response-model timeseries estimates none")
    dataset = replace(config.dataset, derivatives=(f"dnnbrain={output}",), bids_filter_file=None)
    query = {"suffix": "statmap", "stat": "effect", "desc": names.to_label(model)}
    try:
        units = find_beta_units(config.bids_dir, dataset, query=query)
    except MissingInputError as error:
        raise MissingInputError(
            f"{output} has no participants' responses by --response-model {model}; run the participant level first "
            f"({error})"
        ) from error
    ordered = sorted(units, key=_name_group)
    return [list(members) for _, members in groupby(ordered, key=_name_group)]


def _name_group(unit: Unit) -> str:
    return names.join_entities(share_entities(unit))


def share_entities(unit: Unit) -> dict[str, str]:
    """Return what the names of the group's outputs have of a participant's."""
    return {key: label for key, label in unit.entities.items() if key not in ("sub", "ses", "stat", "desc")}


def key_group(units: Sequence[Unit]) -> str:
    """Digest all that the group's results depend on."""
    files = [file for unit in units for run in unit.runs for file in (*run.bold, run.events)]
    return digest_key([__version__, list(map(stamp, files))])


def compare_responses(units: Sequence[Unit], session: Session) -> list[Path]:
    """Write how far participants respond alike to the stimuli that all of them saw.

    Raises
    ------
    BadDataError
        There is one participant only, or fewer than three stimuli were seen by all.
    """
    if len(units) < 2:
        raise BadDataError(f"{units[0].label}: the only participant of the group; at least two are needed")
    seen = [set(read_beta_trials(unit).stimulus) for unit in units]
    shared = sorted(set.intersection(*seen))
    if len(shared) < LEAST_STIMULI:
        raise BadDataError(
            f"{_name_group(units[0])}: {len(shared)} stimuli were seen by all {len(units)} participants; at least "
            f"{LEAST_STIMULI} are needed to compare them"
        )
    together = replace(units[0], participant="group", runs=tuple(run for unit in units for run in unit.runs))
    space = read_unit_space(together)
    ceilings = np.concatenate(list(_compare(units, space, shared, session)), axis=1)
    outputs = []
    for stat, values in zip(CEILING_MAPS, ceilings, strict=True):
        about = describe_map(
            CEILING_MAPS[stat],
            [make_uri(file, session.roots) for run in together.runs for file in run.bold],
            space=describe_space(space, units[0].runs[0].bold[0]),
            maps=[stat],
            statistic=stat,
            versions=list_versions(),
        )
        about |= {"Participants": [unit.participant for unit in units], "SharedStimuli": len(shared)}
        stem = names.group_map(session.output, share_entities(units[0]), session.config.responses.model, stat)
        outputs += write_maps(stem, values[np.newaxis], [stat], space, about)
    return outputs


def _compare(units: Sequence[Unit], space: BrainSpace, shared: Sequence[str], session: Session) -> Iterator[Array]:
    """Compare as many voxels at once as fit the memory."""
    from dnnbrain_app.responses.glm import average_repeats
    from dnnbrain_app.responses.reliability import compare_participants

    each = 16 * len(units) * len(shared)
    width = max(1, int(session.memory / 2 / each))
    for start in range(0, space.n_voxels, width):
        columns = slice(start, min(start + width, space.n_voxels))
        responses = np.empty((len(units), len(shared), columns.stop - start), dtype=np.float32)
        for i, unit in enumerate(units):
            betas = read_betas(unit, space)[:, columns]
            responses[i] = average_repeats(betas, read_beta_trials(unit), shared)
            session.progress(f"{_name_group(unit)}: participants", i + 1, len(units))
        lower, upper = compare_participants(responses)
        with np.errstate(invalid="ignore"):
            yield np.stack([_mean(lower), _mean(upper)])


def _mean(values: Array) -> Array:
    """Mean over the participants that have a value."""
    n = np.isfinite(values).sum(axis=0)
    return np.where(n > 1, np.nansum(values, axis=0) / np.maximum(n, 1), np.nan)

"""Betas that somebody else has estimated, and which stimulus each of their maps is a response to.

An image is 4-D NIfTI, CIFTI (dscalar or dtseries) or a pair of GIFTI files, with BIDS entities in its name, in
``sub-<L>[/ses-<L>][/func]`` of ``--derivatives``. Its trial table lies beside it, a row a map in the order of the maps.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dnnbrain_app.dataset.beta_tables import STIMULUS, label_runs, read_seconds, read_shown
from dnnbrain_app.dataset.entities import RUN_ENTITIES, RunKey, applies_to, key_run, order_runs, parse_entities
from dnnbrain_app.dataset.filters import Query, filter_files, read_filters, select_labels
from dnnbrain_app.dataset.headers import open_matrix, opening, read_header
from dnnbrain_app.dataset.images import read_bold
from dnnbrain_app.dataset.listing import File
from dnnbrain_app.dataset.options import DatasetOptions
from dnnbrain_app.dataset.roots import choose_participants, find_derivatives, find_raw
from dnnbrain_app.dataset.spaces import Variant, choose_variants, identify_variant
from dnnbrain_app.errors import BadDataError, DnnbrainError, EmptySelectionError, MissingInputError, UsageError
from dnnbrain_app.records import Array, BrainSpace, Run, Trials, Unit

logger = logging.getLogger(__name__)

_IMAGES = (".nii.gz", ".nii", ".dscalar.nii", ".dtseries.nii", ".func.gii", ".shape.gii")
_SUFFIXES = ("beta", "betas", "statmap")
_STATS = ("effect", "beta", "betas")
_TABLES = ("trials", "events", "conditions")  # or the suffix of the image

_Series = dict[tuple[RunKey, Variant], tuple[File, ...]]


def find_beta_units(
    bids_dir: Path,
    options: DatasetOptions,
    failures: dict[str, DnnbrainError] | None = None,
    *,
    query: Query | None = None,
) -> list[Unit]:
    """Find the betas there are, as `index.find_units` finds preprocessed data.

    Parameters
    ----------
    bids_dir : Path
        Raw BIDS dataset; or the derivative with the betas, where its ``DatasetLinks`` lead to raw data on this machine.
    options : DatasetOptions
        ``derivatives`` names the folders with betas. The query ``betas`` of the filter file chooses images; what it
        does not mention is: ``suffix`` beta, betas or statmap; ``stat`` effect or beta (statmap must have one); any
        ``desc`` but precomputed, which are this app's own copies. ``bids_database_dir`` is not used.
    failures : dict, optional
        Where given, a participant whose files are damaged is left out, and why is put here under ``sub-<label>``.
    query : mapping, optional
        In the place of the filter file's ``betas``.

    Returns
    -------
    list of Unit
        By participant, task, and space in the order asked for. A run is an image: ``events`` is its trial table and
        ``n_volumes`` the number of its maps; there are no confounds, and ``repetition_time`` is NaN.

    Raises
    ------
    MissingInputError
        A folder, a participant, all betas, a hemisphere or a trial table is absent.
    EmptySelectionError
        A filter, or ``--space``, selects nothing.
    UsageError
        No derivatives are named, or two images hold the same; the filter file is wrong.
    BadDataError
        An image is damaged (of every participant, where `failures` is given).
    """
    raw_dir = find_raw(bids_dir)
    if not options.derivatives and raw_dir == bids_dir:
        raise UsageError("--response-model precomputed: say where the betas are, with --derivatives NAME=PATH")
    roots = list(find_derivatives(bids_dir, options).values())
    where = ", ".join(map(str, roots))
    participants = choose_participants(raw_dir, options.participants)
    filters = read_filters(options.bids_filter_file)
    query = filters.get("betas") if query is None else query
    files = [file for root in roots for file in _list_files(root, participants)]
    images = [file for file in files if _is_image(file, query or {})]
    if not images:
        raise MissingInputError(
            f"no betas of participants {', '.join(options.participants) or 'any'} in {where}: "
            f"no *_betas, *_beta or *_stat-effect_statmap ({', '.join(_IMAGES)}); "
            "name others by the query betas of --bids-filter-file"
        )
    series = _group_images(_select_images(images, options, query))
    variants = choose_variants((variant for _, variant in series), options.spaces)
    masks = filter_files([file for file in files if _is_mask(file)], "mask", filters.get("mask"))
    tables = [file for file in files if file.entities["extension"] == ".tsv"]
    units = _gather_units(series, variants, tables, masks, failures)
    there = {unit.participant for unit in units} | {label.removeprefix("sub-") for label in failures or ()}
    absent = [label for label in participants if label not in there]
    spaces = ", ".join(variant.label for variant in variants)
    filtered = {file.entities["sub"]: f"in space {spaces} that the filters select" for file in images}
    _report_absent(absent, filtered, where, explicit=bool(options.participants))
    return units


def _report_absent(absent: Sequence[str], filtered: Mapping[str, str], where: str, *, explicit: bool) -> None:
    """Say which participants have nothing to compute; that is an error where they were asked for by name."""
    for label in absent:
        message = f"participant {label}: no betas {filtered.get(label, f'in {where}')}"
        if explicit:
            error = EmptySelectionError if label in filtered else MissingInputError
            raise error(message)
        logger.warning("%s; skipped", message)


def _list_files(root: Path, participants: Sequence[str]) -> list[File]:
    folders = ("", "func/", "ses-*/", "ses-*/func/")
    paths = [path for label in participants for folder in folders for path in root.glob(f"sub-{label}/{folder}*.*")]
    return [File(str(path), str(path.parent), parse_entities(path.name)) for path in paths]


def _is_image(file: File, query: Query) -> bool:
    entities = file.entities
    stats = _STATS if entities["suffix"] == "statmap" else (None, *_STATS)
    return (
        "sub" in entities
        and entities["extension"] in _IMAGES
        and ("suffix" in query or entities["suffix"] in _SUFFIXES)
        and ("stat" in query or entities.get("stat") in stats)
        and ("desc" in query or entities.get("desc") != "precomputed")
    )


def _is_mask(file: File) -> bool:
    entities = file.entities
    names = (entities["suffix"], entities.get("desc"), entities.get("label"))
    return entities["extension"] in (".nii.gz", ".nii") and names[0] == "mask" and "brain" in names[1:]


def _select_images(images: Sequence[File], options: DatasetOptions, query: Query | None) -> list[File]:
    images = filter_files(images, "betas", query)
    images = select_labels(images, "task", "--task-id", options.tasks)
    images = select_labels(images, "ses", "--session-label", options.sessions)
    return select_labels(images, "run", "--run-label", options.runs)


def _group_images(images: Sequence[File]) -> _Series:
    """Group images by recording and space; those of two hemispheres are one."""
    groups: dict[tuple[RunKey, Variant], dict[str, File]] = defaultdict(dict)
    for file in sorted(images, key=lambda file: file.path):
        variant = identify_variant(file.entities)
        side = file.entities.get("hemi", "") if variant.format == "gifti" else ""
        other = groups[key_run(file.entities), variant].setdefault(side, file)
        if other is not file:
            raise UsageError(
                f"two images of betas of the same run and space: {other.path} and {file.path}; choose one by the query "
                'betas of --bids-filter-file, e.g. {"betas": {"desc": "lss"}}'
            )
    return {key: tuple(group[side] for side in sorted(group)) for key, group in groups.items()}


def _gather_units(
    series: _Series,
    variants: Sequence[Variant],
    tables: Sequence[File],
    masks: Sequence[File],
    failures: dict[str, DnnbrainError] | None,
) -> list[Unit]:
    groups: dict[tuple[str, str, Variant], list[Run]] = defaultdict(list)
    broken: dict[str, DnnbrainError] = {}
    for (_, variant), files in series.items():
        entities = files[0].entities
        if variant in variants:
            try:
                run = _build_run(files, variant, tables, masks)
            except DnnbrainError as error:
                broken.setdefault(entities["sub"], error)
            else:
                groups[entities["sub"], entities.get("task", ""), variant].append(run)
    # a participant with a broken image is left out whole: with fewer its results would look like the others'
    groups = {unit: runs for unit, runs in groups.items() if unit[0] not in broken}
    if broken and (failures is None or not groups):
        raise next(iter(broken.values()))
    if failures is not None:
        failures.update({f"sub-{label}": error for label, error in broken.items()})
    order = sorted(groups, key=lambda unit: (unit[:2], variants.index(unit[2])))
    return [
        Unit(participant, task, variant.name, _name_outputs(runs, variant), tuple(runs))
        for participant, task, variant in order
        for runs in [sorted(groups[participant, task, variant], key=lambda run: order_runs(run.entities))]
    ]


def _build_run(files: tuple[File, ...], variant: Variant, tables: Sequence[File], masks: Sequence[File]) -> Run:
    first, paths = files[0], tuple(Path(file.path) for file in files)
    if variant.format == "gifti" and [file.entities.get("hemi") for file in files] != ["L", "R"]:
        raise MissingInputError(f"{first.path}: the betas of the other hemisphere (hemi-L, hemi-R) are not there")
    inside = [mask for mask in masks if identify_variant(mask.entities) == variant and _covers(mask, first)]
    mask = max(inside, key=lambda mask: len(mask.entities), default=None)
    return Run(
        entities={entity: first.entities[entity] for entity in RUN_ENTITIES if entity in first.entities},
        bold=paths,
        events=_find_table(first, tables),
        confounds=None,
        mask=Path(mask.path) if mask else None,
        repetition_time=math.nan,
        start_time=0.0,
        n_volumes=_count_maps(paths),
    )


def _covers(mask: File, image: File) -> bool:
    """Whether a mask is of the image's recording, or of several of which it is one."""
    own = {entity: label for entity, label in mask.entities.items() if entity in RUN_ENTITIES}
    return applies_to(own, image.entities)


def _find_table(image: File, tables: Sequence[File]) -> Path:
    suffixes = (image.entities["suffix"], *_TABLES)
    beside = [
        table
        for table in tables
        if table.directory == image.directory
        and table.entities["suffix"] in suffixes
        and applies_to(table.entities, image.entities)
    ]
    if not beside:
        raise MissingInputError(
            f"{image.path}: no trial table beside it; a .tsv of the same name (without hemi-), or ending in "
            f"{', '.join(f'_{suffix}.tsv' for suffix in _TABLES)}, must say which stimulus each map is a response to"
        )
    # the one whose name says most, as the others may be of several images
    best = min(beside, key=lambda table: (-len(table.entities), suffixes.index(table.entities["suffix"])))
    return Path(best.path)


def _count_maps(paths: tuple[Path, ...]) -> int:
    if not paths[0].name.endswith(".dscalar.nii"):
        return read_header(paths).n_volumes
    with opening(paths[0]):
        return int(open_matrix(paths[0]).shape[0])


def _name_outputs(runs: Sequence[Run], variant: Variant) -> dict[str, str]:
    shared = set.intersection(*(set(run.entities.items()) for run in runs))
    return {key: label for key, label in runs[0].entities.items() if key != "run" and (key, label) in shared} | dict(
        variant.entities
    )


def read_beta_trials(unit: Unit, column: str = "", trial_filter: str = "") -> Trials:
    """Read which stimulus each map is a response to.

    Parameters
    ----------
    unit : Unit
        Of `find_beta_units`.
    column : str
        Column of the trial tables that names the stimulus; empty: the first of stim_file, stim_id, stimulus_id and
        stimulus that all tables have and that names something. Maps with n/a there are left out.
    trial_filter : str
        Condition that rows have to fulfil; see `conditions.select_rows`. Maps of other rows are left out.

    Returns
    -------
    Trials
        In the order of the images and of their maps. ``onset`` and ``duration`` are NaN where the tables do not tell.
        Runs are told apart by the images, and within an image by the columns run and session (or ses).

    Raises
    ------
    MissingInputError
        If a table is absent.
    BadDataError
        If a table has not one row a map, or no such column; there are fewer than two different stimuli; or the filter
        does not fit the tables.
    UsageError
        If the filter is no condition.
    """
    tables = read_shown(unit, column, trial_filter)
    numbers: dict[str, int] = {}
    rows = []
    for run, table in zip(unit.runs, tables, strict=True):
        labels = label_runs(run, table)
        for label in dict.fromkeys(labels):
            if label in numbers:
                raise BadDataError(f"{run.events}: {label} is in the table of another image as well")
            numbers[label] = len(numbers)
        rows.append(np.array([numbers[label] for label in labels], dtype=int))
    onset, duration = (
        np.concatenate([read_seconds(table, name, run.events) for run, table in zip(unit.runs, tables, strict=True)])
        for name in ("onset", "duration")
    )
    stimulus = np.concatenate([table[STIMULUS].to_numpy(str) for table in tables])
    return Trials(onset, duration, stimulus, np.concatenate(rows), tuple(numbers))


def read_betas(unit: Unit, space: BrainSpace, column: str = "", trial_filter: str = "") -> Array:
    """Read the betas themselves.

    Parameters
    ----------
    unit : Unit
        Of `find_beta_units`.
    space : BrainSpace
        Of `images.read_unit_space`.
    column, trial_filter : str
        As for `read_beta_trials`.

    Returns
    -------
    array of shape (n_trials, n_voxels)
        float32, in the unit of the images; a row for each trial of `read_beta_trials`.

    Raises
    ------
    MissingInputError, BadDataError
        As `read_beta_trials`; or an image is damaged or lies elsewhere.
    """
    tables = read_shown(unit, column, trial_filter)
    data = np.empty((sum(map(len, tables)), space.n_voxels), dtype=np.float32)
    start = 0
    for run, table in zip(unit.runs, tables, strict=True):
        data[start : start + len(table)] = read_bold(run, space)[table.index]
        start += len(table)
    return data

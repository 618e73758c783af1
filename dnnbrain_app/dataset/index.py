"""From BIDS_DIR to units of work: runs of events and preprocessed data, matched and checked."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dnnbrain_app.dataset.entities import RUN_ENTITIES, RunKey, key_run, order_runs
from dnnbrain_app.dataset.filters import Query, filter_files, read_filters, select_labels
from dnnbrain_app.dataset.headers import read_header
from dnnbrain_app.dataset.listing import File, Inheritance, list_files
from dnnbrain_app.dataset.options import DatasetOptions
from dnnbrain_app.dataset.roots import choose_participants, find_derivatives, find_raw, list_participants
from dnnbrain_app.dataset.spaces import Variant, choose_variants, identify_variant
from dnnbrain_app.dataset.timing import read_sidecars, resolve_timing
from dnnbrain_app.errors import DnnbrainError, EmptySelectionError, MissingInputError, UsageError
from dnnbrain_app.records import Run, Unit

__all__ = ["find_derivatives", "find_units", "list_participants"]

logger = logging.getLogger(__name__)

# how fMRIPrep calls its preprocessed series: volumes are told from others by desc-, surfaces have none; it never writes
# FreeSurfer's and AFNI's formats, which may have it or not
_BOLD: dict[str, tuple[str | None, ...]] = {
    **dict.fromkeys((".dtseries.nii", ".func.gii"), (None,)),
    **dict.fromkeys((".nii.gz", ".nii"), ("preproc",)),
    **dict.fromkeys((".mgz", ".mgh", ".BRIK", ".BRIK.gz"), (None, "preproc")),
}


@dataclass(frozen=True, slots=True, eq=False)
class _Raw:
    """The raw dataset: the events that apply, the sidecars that do, and how it spells a run."""

    events: Inheritance
    sidecars: Inheritance
    spelling: Mapping[RunKey, Mapping[str, str]]


@dataclass(frozen=True, slots=True, eq=False)
class _Derived:
    """The preprocessed data: series by recording and space, and what lies beside them."""

    series: Mapping[tuple[RunKey, Variant], tuple[File, ...]]
    confounds: Mapping[RunKey, File]
    masks: Mapping[tuple[RunKey, Variant], File]
    sidecars: Mapping[str, Inheritance]
    participants: frozenset[str]


def find_units(bids_dir: Path, options: DatasetOptions, failures: dict[str, DnnbrainError] | None = None) -> list[Unit]:
    """Find what there is to compute.

    Parameters
    ----------
    bids_dir : Path
        Raw BIDS dataset; or its fMRIPrep derivative, where ``DatasetLinks`` lead to raw data on this machine.
    options : DatasetOptions
        Filters and places.
    failures : dict, optional
        Where given, a participant whose files are damaged is left out, and why is put here under ``sub-<label>``.

    Returns
    -------
    list of Unit
        By participant, task, and space in the order asked for. Of the BOLD files only the headers have been read.

    Raises
    ------
    MissingInputError
        BIDS_DIR, a participant, the derivatives or all the events are absent.
    EmptySelectionError
        A filter, or ``--space``, selects nothing.
    UsageError
        The derivatives or a space are ambiguous; the filter file is wrong.
    BadDataError
        A BOLD file is damaged, or contradicts its sidecar (of every participant, where `failures` is given).
    """
    raw_dir = find_raw(bids_dir)
    derivatives = find_derivatives(bids_dir, options)
    participants = choose_participants(raw_dir, options.participants)
    filters = read_filters(options.bids_filter_file)
    database = options.bids_database_dir
    raw = _index_raw(raw_dir, list_files(raw_dir, participants, database), filters)
    listed = {
        str(path): list_files(path, participants, database and database / f"derivatives-{name}")
        for name, path in derivatives.items()
    }
    derived = _index_derived(listed, options, filters)
    variants = choose_variants((variant for _, variant in derived.series), options.spaces)
    units = _gather_units(raw, derived, variants, raw_dir, failures)
    there = {unit.participant for unit in units} | {label.removeprefix("sub-") for label in failures or ()}
    absent = [label for label in participants if label not in there]
    _report_absent(absent, derived, listed, variants, explicit=bool(options.participants))
    logger.info("%d participants, %d units, %d runs", len(there), len(units), sum(len(unit.runs) for unit in units))
    return units


def _index_raw(root: Path, files: Sequence[File], filters: Mapping[str, Query]) -> _Raw:
    events = [file for file in files if file.entities["suffix"] == "events"]
    sidecars = [file for file in files if file.entities["extension"] == ".json"]
    # events files first, so that the names of the data themselves win where both are there
    own = [file for file in files if "sub" in file.entities and file.entities["suffix"] in ("events", "bold")]
    spelling = {
        key_run(file.entities): file.entities
        for file in sorted(own, key=lambda file: file.entities["suffix"] == "bold")
    }
    return _Raw(
        Inheritance(root, filter_files(events, "events", filters.get("events"))), Inheritance(root, sidecars), spelling
    )


def _index_derived(
    listed: Mapping[str, Sequence[File]], options: DatasetOptions, filters: Mapping[str, Query]
) -> _Derived:
    files = [file for found in listed.values() for file in found]
    bold = [file for file in files if _is_bold(file, filters.get("bold", {}))]
    there = frozenset(file.entities["sub"] for file in bold)
    if not bold:
        asked = ", ".join(options.participants) or "any"
        raise MissingInputError(
            f"no preprocessed BOLD of participants {asked} in {', '.join(listed)}: no *_bold.dtseries.nii, "
            "*_hemi-*_bold.func.gii (or .mgh) or *_desc-preproc_bold.nii.gz (or .mgz, .BRIK); "
            "fMRIPrep with --level minimal writes none"
        )
    bold = filter_files(bold, "bold", filters.get("bold"))
    bold = select_labels(bold, "task", "--task-id", options.tasks)
    bold = select_labels(bold, "ses", "--session-label", options.sessions)
    bold = select_labels(bold, "run", "--run-label", options.runs)
    masks = filter_files([file for file in files if _is_mask(file)], "mask", filters.get("mask"))
    confounds = filter_files([file for file in files if _is_confounds(file)], "confounds", filters.get("confounds"))
    return _Derived(
        series=_group_series(bold),
        confounds={key_run(file.entities): file for file in confounds},
        masks={(key_run(file.entities), identify_variant(file.entities)): file for file in masks},
        participants=there,
        sidecars={
            root: Inheritance(Path(root), (file for file in found if file.entities["extension"].endswith(".json")))
            for root, found in listed.items()
        },
    )


def _is_bold(file: File, query: Query) -> bool:
    entities = file.entities
    if entities["extension"] not in _BOLD or entities["suffix"] not in ("bold", "preproc"):
        return False
    # variant- is what fMRIPrep before 1.2 called data that ICA-AROMA had smoothed and cleaned
    if ("echo" in entities and "echo" not in query) or "variant" in entities:
        return False
    return "desc" in query or entities["suffix"] == "preproc" or entities.get("desc") in _BOLD[entities["extension"]]


def _is_mask(file: File) -> bool:
    entities = file.entities
    return entities["suffix"] == "brainmask" or (
        entities["suffix"] == "mask" and "brain" in (entities.get("desc"), entities.get("label"))
    )


def _is_confounds(file: File) -> bool:
    return file.entities["suffix"] == "confounds" or file.entities.get("desc") == "confounds"


def _group_series(bold: Sequence[File]) -> dict[tuple[RunKey, Variant], tuple[File, ...]]:
    groups: dict[tuple[RunKey, Variant], dict[str, File]] = defaultdict(dict)
    for file in bold:
        hemisphere = file.entities.get("hemi", "")
        group = groups[key_run(file.entities), identify_variant(file.entities)]
        if hemisphere in group:
            raise UsageError(
                f"two files of the same run and space: {group[hemisphere].path} and {file.path}; "
                "keep one, with --derivatives NAME=PATH or the query bold of --bids-filter-file"
            )
        group[hemisphere] = file
    return {
        (key, variant): _order_hemispheres(group) if variant.format == "gifti" else tuple(group.values())
        for (key, variant), group in groups.items()
    }


def _order_hemispheres(group: Mapping[str, File]) -> tuple[File, ...]:
    for missing in {"L", "R"} - group.keys():
        there = next(iter(group.values()))
        raise MissingInputError(f"{there.path}: the file of hemi-{missing} is not there; both hemispheres are needed")
    return group["L"], group["R"]


def _report_absent(
    absent: Sequence[str],
    derived: _Derived,
    listed: Mapping[str, Sequence[File]],
    variants: Sequence[Variant],
    *,
    explicit: bool,
) -> None:
    """Say which participants have nothing to compute; that is an error where they were asked for by name."""
    spaces = ", ".join(variant.label for variant in variants)
    for label in absent:
        if label in derived.participants:
            error: type[DnnbrainError] = EmptySelectionError
            message = f"participant {label}: no preprocessed run with events in space {spaces} that the filters select"
        else:
            error, message = MissingInputError, f"participant {label}: no preprocessed BOLD in {', '.join(listed)}"
        if explicit:
            raise error(message)
        logger.warning("%s; skipped", message)


def _gather_units(
    raw: _Raw,
    derived: _Derived,
    variants: Sequence[Variant],
    raw_dir: Path,
    failures: dict[str, DnnbrainError] | None,
) -> list[Unit]:
    groups: dict[tuple[str, str, Variant], list[Run]] = defaultdict(list)
    skipped: dict[str, list[str]] = defaultdict(list)
    broken: dict[str, DnnbrainError] = {}
    for (key, variant), files in derived.series.items():
        if variant not in variants:
            continue
        entities = _spell_run(raw.spelling.get(key, files[0].entities))
        events = raw.events.find_nearest(entities)
        if events is None:
            skipped[entities.get("task", "")].append(files[0].name)
        else:
            try:
                run = _build_run(entities, key, variant, events, raw, derived)
            except DnnbrainError as error:
                broken.setdefault(entities["sub"], error)
            else:
                groups[entities["sub"], entities.get("task", ""), variant].append(run)
    # a participant with a broken run is left out whole: with fewer runs its results would look like the others'
    groups = {unit: runs for unit, runs in groups.items() if unit[0] not in broken}
    if broken and (failures is None or not groups):
        raise next(iter(broken.values()))
    if failures is not None:
        failures.update({f"sub-{label}": error for label, error in broken.items()})
    if not groups:
        names = [name for found in skipped.values() for name in found]
        raise MissingInputError(
            f"no events: none of the {len(names)} runs, such as {names[0]}, has an events.tsv in {raw_dir} "
            "(at the run, session, participant or root level)"
        )
    for task, names in skipped.items():
        logger.warning("task-%s: %d runs have no events.tsv, such as %s; skipped", task, len(names), names[0])
    return [
        Unit(participant, task, variant.name, _name_outputs(runs, variant), tuple(runs))
        for (participant, task, variant), found in sorted(
            groups.items(), key=lambda item: (item[0][:2], variants.index(item[0][2]))
        )
        for runs in [sorted(found, key=lambda run: order_runs(run.entities))]
    ]


def _spell_run(entities: Mapping[str, str]) -> dict[str, str]:
    return {entity: entities[entity] for entity in RUN_ENTITIES if entity in entities}


def _build_run(
    entities: dict[str, str], key: RunKey, variant: Variant, events: File, raw: _Raw, derived: _Derived
) -> Run:
    files = derived.series[key, variant]
    paths = tuple(Path(file.path) for file in files)
    header = read_header(paths)
    root = next(root for root in derived.sidecars if files[0].path.startswith(f"{root}/"))
    # of the sidecars beside the data, those of other spaces do not apply: their entities differ
    found = derived.sidecars[root].find_all(files[0].entities)
    sidecar = read_sidecars(file.path for file in found if _speaks_of(file, files[0]))
    if not {"RepetitionTime", "VolumeTiming"} & sidecar.keys():
        sidecar = read_sidecars(file.path for file in raw.sidecars.find_all(entities)) | sidecar
    repetition_time, start_time = resolve_timing(paths[0], header, sidecar)
    confounds, mask = derived.confounds.get(key), derived.masks.get((key, variant))
    return Run(
        entities=entities,
        bold=paths,
        events=Path(events.path),
        confounds=Path(confounds.path) if confounds else None,
        mask=Path(mask.path) if mask else None,
        repetition_time=repetition_time,
        start_time=start_time,
        n_volumes=header.n_volumes,
    )


def _speaks_of(sidecar: File, data: File) -> bool:
    """Whether a sidecar is for this kind of file: ``.dtseries.json``, of fMRIPrep to 21, is for ``.dtseries.nii``."""
    return data.entities["extension"].startswith(sidecar.entities["extension"].removesuffix(".json"))


def _name_outputs(runs: Sequence[Run], variant: Variant) -> dict[str, str]:
    first = runs[0].entities
    shared = {
        entity: label
        for entity, label in first.items()
        if entity != "run" and all(run.entities.get(entity) == label for run in runs)
    }
    return shared | dict(variant.entities)

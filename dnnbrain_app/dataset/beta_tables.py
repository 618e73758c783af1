"""Trial tables beside betas: which stimulus a map is a response to, and in which run it was shown."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from dnnbrain_app.dataset.conditions import select_rows
from dnnbrain_app.dataset.entities import RUN_ENTITIES
from dnnbrain_app.dataset.events import USUAL_COLUMNS, choose_column, read_table, spell_names
from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array, Run, Unit

logger = logging.getLogger(__name__)

STIMULUS = "stimulus shown"
"""Column that `read_shown` adds: the stimulus, whatever the table calls it."""

_RUN_COLUMNS = {"session": "ses", "ses": "ses", "run": "run"}


def read_shown(unit: Unit, column: str, trial_filter: str) -> list[pd.DataFrame]:
    """Read of each image the rows that name a stimulus, in the column `STIMULUS`; the index is that of the map."""
    tables = {run.events: read_table(run.events) for run in unit.runs}
    for run in unit.runs:
        if len(tables[run.events]) != run.n_volumes:
            raise BadDataError(
                f"{run.events}: {len(tables[run.events])} rows for the {run.n_volumes} maps of {run.bold[0].name}; "
                "one row a map is needed"
            )
    if trial_filter:
        tables = select_rows(tables, trial_filter)
    column = choose_column(tables, column, (*USUAL_COLUMNS, "stimulus"))  # the last is our own
    shown = [tables[run.events].dropna(subset=column) for run in unit.runs]
    names = spell_names(np.concatenate([table[column].to_numpy(object) for table in shown]))
    if len(set(names)) < 2:
        where = ", ".join(str(run.events) for run in unit.runs[:3])
        named = f"only {str(names[0])!r}" if len(names) else "none"
        raise BadDataError(f"{where}: column {column!r} names {named}; at least two different stimuli are needed")
    logger.info("%s: %d of %d maps are of stimuli", unit.label, len(names), sum(run.n_volumes for run in unit.runs))
    ends = np.cumsum([len(table) for table in shown])[:-1]
    return [table.assign(**{STIMULUS: part}) for table, part in zip(shown, np.split(names, ends), strict=True)]


def label_runs(run: Run, table: pd.DataFrame) -> list[str]:
    """Name the run of each map: the entities of the image, and what else the columns session and run say."""
    own = {entity: label for entity, label in run.entities.items() if entity != "sub"}
    columns = [name for name in _RUN_COLUMNS if name in table.columns]
    labels = []
    for cells in table[columns].to_numpy(object):
        told: dict[str, str] = {}
        for name, cell in zip(columns, cells, strict=True):
            told |= {} if pd.isna(cell) else _parse_cell(_RUN_COLUMNS[name], cell)
        entities = told | own
        labels.append("_".join(f"{key}-{entities[key]}" for key in RUN_ENTITIES if key in entities) or "run-1")
    return labels


def _parse_cell(entity: str, text: str) -> Mapping[str, str]:
    """Take a cell apart: a label (``1``, also as ``1.0``), ``run-1``, or a whole run such as ``task-x_run-1``."""
    pairs = dict(pair.partition("-")[::2] for pair in text.split("_"))
    known = {key: label for key, label in pairs.items() if key in RUN_ENTITIES and key != "sub" and label}
    return known or {entity: text.removesuffix(".0")}


def read_seconds(table: pd.DataFrame, name: str, path: Path) -> Array:
    """Read a column of seconds; NaN where it is n/a, or absent."""
    if name not in table.columns:
        return np.full(len(table), np.nan)
    numbers: Array = pd.to_numeric(table[name], errors="coerce").to_numpy(float)
    wrong = np.flatnonzero(table[name].notna() & ~np.isfinite(numbers))
    if len(wrong):
        row = table.index[wrong[0]]
        raise BadDataError(f"{path}: row {row + 1}: {name} {table[name][row]!r} is not a number of seconds")
    return numbers

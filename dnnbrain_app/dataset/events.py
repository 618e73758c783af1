"""Events tables, and the trials they describe."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dnnbrain_app.dataset.conditions import select_rows
from dnnbrain_app.errors import BadDataError, MissingInputError
from dnnbrain_app.records import Array, Run, Trials

logger = logging.getLogger(__name__)

USUAL_COLUMNS = ("stim_file", "stim_id", "stimulus_id")  # BIDS; BEP044, and what its draft said before
_LIKELY = re.compile(r"stim|im(g|age)|pic|photo|file|video|movie|clip|\d+k_id", re.IGNORECASE)
_FILE = re.compile(r"\.[A-Za-z]\w{1,4}$")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")


def read_table(path: Path) -> pd.DataFrame:
    """Read a BIDS .tsv as text, ``n/a`` and empty cells as missing; byte-order mark and any line ends are accepted.

    Raises
    ------
    MissingInputError, BadDataError
        If the file is absent, empty, not UTF-8 or ragged.
    """
    try:
        table = pd.read_csv(
            path,
            sep="\t",
            dtype=str,
            keep_default_na=False,
            na_values=["n/a", "N/A", ""],
            encoding="utf-8-sig",
            index_col=False,
            quoting=csv.QUOTE_NONE,
            skipinitialspace=True,
        )
    except FileNotFoundError as error:
        hint = (
            "a link whose content is not here; fetch it with 'datalad get'" if path.is_symlink() else "does not exist"
        )
        raise MissingInputError(f"{path}: {hint}") from error
    except pd.errors.EmptyDataError as error:
        raise BadDataError(f"{path}: the file is empty") from error
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise BadDataError(f"{path}: cannot be read as a tab-separated table ({error})") from error
    table.columns = [str(name).strip().strip('"') for name in table.columns]
    if not table.columns.is_unique:
        twice = table.columns[table.columns.duplicated()][0]
        raise BadDataError(f"{path}: two columns are named {twice!r}")
    for name in table.columns:
        table[name] = table[name].str.strip().str.strip('"').replace({"n/a": None, "": None})
    return table


def read_events(path: Path) -> pd.DataFrame:
    """Read an events table.

    Parameters
    ----------
    path : Path
        ``events.tsv``.

    Returns
    -------
    pandas.DataFrame
        ``onset`` and ``duration`` in seconds (float; a duration of n/a, or a table without durations, gives 0), the
        other columns as text with missing values for n/a. It may have no rows.

    Raises
    ------
    BadDataError
        If ``onset`` is absent, or a number is not a number; or a duration is negative.
    MissingInputError
        If the file is absent.
    """
    table = read_table(path)
    if "onset" not in table.columns:
        raise BadDataError(f"{path}: no column onset; there are: {', '.join(table.columns)}")
    table["onset"] = _to_seconds(table["onset"], path)
    if "duration" in table.columns:
        table["duration"] = _to_seconds(table["duration"], path)
    else:
        table["duration"] = np.nan
    unknown = int(table["duration"].isna().sum())
    if unknown:
        logger.warning("%s: %d of %d events have no duration; taken as 0 s", path, unknown, len(table))
        table["duration"] = table["duration"].fillna(0.0)
    negative = np.flatnonzero(table["duration"] < 0)
    if len(negative):
        raise BadDataError(
            f"{path}: row {negative[0] + 1}: duration {table['duration'].iloc[negative[0]]:g} s is negative"
        )
    return table


def _to_seconds(column: pd.Series, path: Path) -> pd.Series:
    numbers = pd.to_numeric(column, errors="coerce").astype(float)
    wrong = np.flatnonzero(column.notna() & ~np.isfinite(numbers))
    if len(wrong):
        raise BadDataError(
            f"{path}: row {wrong[0] + 1}: {column.name} {column.iloc[wrong[0]]!r} is not a number of seconds"
        )
    return numbers


def build_trials(runs: Sequence[Run], column: str, trial_filter: str = "") -> Trials:
    """Collect the presentations of stimuli over a participant's runs.

    Parameters
    ----------
    runs : sequence of Run
        In the order in which ``Trials.run`` counts them.
    column : str
        Column of the events that names the stimulus; see `choose_column`. Rows with n/a there are not trials.
    trial_filter : str
        Condition that rows have to fulfil; see `select_rows`. Default: none.

    Returns
    -------
    Trials
        By run, then onset. Stimuli that all are named by numbers are spelled alike; see `spell_names`.

    Raises
    ------
    BadDataError
        If a table has no such column, a trial has no onset, there is no trial, or the filter does not fit the tables.
    UsageError
        If the filter is no condition.
    """
    tables = {path: read_events(path) for path in dict.fromkeys(run.events for run in runs)}
    if trial_filter:
        tables = select_rows(tables, trial_filter)
    column = choose_column(tables, column)
    onsets, durations, names, numbers = [], [], [], []
    for number, run in enumerate(runs):
        events = tables[run.events]
        shown = events[events[column].notna()].sort_values("onset", kind="stable")
        if shown["onset"].isna().any():
            raise BadDataError(f"{run.events}: stimulus {shown[column].iloc[-1]!r} has onset n/a")
        if shown.empty:
            logger.warning("%s: no row names a stimulus in column %s", run.events, column)
        onsets.append(shown["onset"].to_numpy(float))
        durations.append(shown["duration"].to_numpy(float))
        names.append(shown[column].to_numpy(object))
        numbers.append(np.full(len(shown), number))
    stimulus = spell_names(_concatenate(names))
    if not len(stimulus):
        where = ", ".join(str(run.events) for run in runs[:3])
        raise BadDataError(f"{where}: column {column!r} names no stimulus in any row")
    run_labels = tuple(_label_run(run) for run in runs)
    return Trials(
        _concatenate(onsets), _concatenate(durations), stimulus, _concatenate(numbers).astype(int), run_labels
    )


def choose_column(tables: Mapping[Path, pd.DataFrame], column: str, usual: Sequence[str] = USUAL_COLUMNS) -> str:
    """Choose the column that names the stimuli.

    Parameters
    ----------
    tables : mapping of Path to DataFrame
        Of text; missing values are n/a.
    column : str
        The user's choice; ``""`` for the first of the usual ones that all tables have and that is not n/a throughout.
    usual : sequence of str
        By precedence.

    Raises
    ------
    BadDataError
        If there is none; columns that look as if they named stimuli are listed.
    """
    wanted = [column] if column else usual
    for name in wanted:
        everywhere = all(name in table.columns for table in tables.values())
        if everywhere and (column or any(table[name].notna().any() for table in tables.values())):
            return name
    path = min(tables, key=lambda path: len({*wanted} & {*tables[path].columns}))
    text = repr(column) if column else f"{', '.join(usual[:-1])} or {usual[-1]} that names stimuli in all runs"
    likely = _list_likely(tables[path])
    raise BadDataError(
        f"{path}: no column {text}; there are: {', '.join(tables[path].columns)}"
        f"{' (likely: ' * bool(likely)}{'; '.join(likely)}{')' * bool(likely)}. "
        "Name the one with the stimuli by --stim-column"
    )


def _list_likely(table: pd.DataFrame) -> list[str]:
    """List the columns that seem to name stimuli, each with an example; those that name files first."""
    examples = {column: str(next(iter(table[column].dropna()), "n/a")) for column in table.columns}
    files = [column for column, example in examples.items() if _FILE.search(example)]
    others = [column for column in examples if _LIKELY.search(column) and column not in files]
    return [f"{column}, e.g. {examples[column]}" for column in [*files, *others]]


def spell_names(names: Array) -> Array:
    """Spell names alike if all are numbers, as programs write them in different ways.

    Examples
    --------
    >>> spell_names(np.array(["569.0", "012", "3626115.0194980004", "3482252.022530"])).tolist()
    ['569', '012', '3626115.019498', '3482252.02253']
    >>> spell_names(np.array(["569.0", "face"])).tolist()
    ['569.0', 'face']
    """
    are_numbers = all(map(_NUMBER.fullmatch, names))
    return np.array([_spell_number(name) if are_numbers else name for name in names], dtype=str)


def _spell_number(text: str) -> str:
    whole, _, fraction = text.partition(".")
    if not fraction.strip("0"):
        return whole
    short = f"{float(text):.15g}"  # the digits that a double-precision number keeps
    return text if "e" in short else short


def _concatenate(arrays: Sequence[Array]) -> Array:
    return np.concatenate(arrays) if arrays else np.empty(0)


def _label_run(run: Run) -> str:
    return "_".join(f"{entity}-{label}" for entity, label in run.entities.items() if entity != "sub")

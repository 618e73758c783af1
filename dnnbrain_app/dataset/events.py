"""Events tables, and the trials they describe."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dnnbrain_app.errors import BadDataError, MissingInputError
from dnnbrain_app.records import Array, Run, Trials

logger = logging.getLogger(__name__)


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


def build_trials(runs: Sequence[Run], column: str) -> Trials:
    """Collect the presentations of stimuli over a participant's runs.

    Parameters
    ----------
    runs : sequence of Run
        In the order in which ``Trials.run`` counts them.
    column : str
        Column of the events that names the stimulus. Rows with n/a there are not trials.

    Returns
    -------
    Trials
        By run, then onset.

    Raises
    ------
    BadDataError
        If a table has no such column, a trial has no onset, or there are fewer than two different stimuli.
    """
    onsets, durations, names, numbers = [], [], [], []
    for number, run in enumerate(runs):
        events = read_events(run.events)
        if column not in events.columns:
            raise BadDataError(
                f"{run.events}: no column {column!r}; there are: {', '.join(events.columns)}. "
                "Name the one with the stimuli by --stim-column"
            )
        shown = events[events[column].notna()].sort_values("onset", kind="stable")
        if shown["onset"].isna().any():
            raise BadDataError(f"{run.events}: stimulus {shown[column].iloc[-1]!r} has onset n/a")
        if shown.empty:
            logger.warning("%s: no row names a stimulus in column %s", run.events, column)
        onsets.append(shown["onset"].to_numpy(float))
        durations.append(shown["duration"].to_numpy(float))
        names.append(shown[column].to_numpy(object))
        numbers.append(np.full(len(shown), number))
    stimulus = _concatenate(names).astype(str)
    if len(set(stimulus)) < 2:
        named = f"only {str(stimulus[0])!r}" if len(stimulus) else "none"
        where = ", ".join(str(run.events) for run in runs[:3])
        raise BadDataError(f"{where}: column {column!r} names {named}; at least two different stimuli are needed")
    run_labels = tuple(_label_run(run) for run in runs)
    return Trials(
        _concatenate(onsets), _concatenate(durations), stimulus, _concatenate(numbers).astype(int), run_labels
    )


def _concatenate(arrays: Sequence[Array]) -> Array:
    return np.concatenate(arrays) if arrays else np.empty(0)


def _label_run(run: Run) -> str:
    return "_".join(f"{entity}-{label}" for entity, label in run.entities.items() if entity != "sub")

"""What a table tells of the stimuli: categories, ratings, ..."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array

logger = logging.getLogger(__name__)


def read_table(path: Path) -> pd.DataFrame:
    """Read ``stimuli.tsv`` as text.

    Raises
    ------
    BadDataError
        If it is no table.
    """
    try:
        return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise BadDataError(f"{path}: cannot be read as a tab-separated table ({error})") from error


def match_attributes(table: pd.DataFrame, ids: Sequence[str], source: str) -> dict[str, Array]:
    """Find the row of each stimulus by the first column.

    Parameters
    ----------
    table : DataFrame
        Of text; the first row of a stimulus counts.
    ids : sequence of str
        The n_stimuli stimuli.
    source : str
        Where the table is from, for a warning if it names none of them.

    Returns
    -------
    dict of str to array of shape (n_stimuli,)
        The other columns: float (NaN where missing) if numeric, else text (``n/a``).
    """
    key, *columns = (str(column).strip() for column in table.columns)
    table = table.set_axis([key, *columns], axis="columns")
    known = {_normalise(name): row for row, name in reversed(list(enumerate(table[key])))}
    rows = [known.get(_normalise(name)) for name in ids]
    if columns and all(row is None for row in rows):
        logger.warning("%s: its first column, %s, names none of the %d stimuli; no attributes", source, key, len(ids))
        return {}
    return {
        column: _to_array([texts[row] if row is not None else "n/a" for row in rows])
        for column in columns
        if (texts := table[column].tolist())
    }


def _normalise(name: str) -> str:
    return name.strip().replace("\\", "/").removeprefix("stimuli/")


def _to_array(values: Sequence[str]) -> Array:
    texts = [value.strip() or "n/a" for value in values]
    numbers = pd.to_numeric(pd.Series(texts).replace("n/a", None), errors="coerce").to_numpy(float)
    is_number = ~np.isnan(numbers) | (np.array(texts) == "n/a")
    return numbers if is_number.all() and not np.isnan(numbers).all() else np.array(texts)

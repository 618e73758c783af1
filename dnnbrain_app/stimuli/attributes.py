"""What a table tells of the stimuli: categories, ratings, ..."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dnnbrain_app.errors import BadDataError, MissingInputError
from dnnbrain_app.records import Array

logger = logging.getLogger(__name__)

_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")


def read_table(path: Path) -> pd.DataFrame:
    """Read a table of stimuli (.tsv) as text.

    Raises
    ------
    MissingInputError
        If it is absent.
    BadDataError
        If it is no table.
    """
    try:
        return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except FileNotFoundError as error:
        raise MissingInputError(f"{path}: does not exist") from error
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
    rows = match_rows(table[key].tolist(), ids)
    if columns and all(row is None for row in rows):
        logger.warning("%s: its first column, %s, names none of the %d stimuli; no attributes", source, key, len(ids))
        return {}
    return {
        column: _to_array([texts[row] if row is not None else "n/a" for row in rows])
        for column in columns
        if (texts := table[column].tolist())
    }


def match_rows(keys: Sequence[str], names: Sequence[str]) -> list[int | None]:
    r"""Find the row of each name: the first with the same text, else the only one with the same number.

    Examples
    --------
    >>> match_rows(["faces/a.png", "046", "46.0", "7.0"], ["stimuli/faces\\a.png", "46.0", "46", "7", "8"])
    [0, 2, None, 3, None]
    """
    by_text: dict[str, int] = {}
    for row, key in enumerate(keys):
        by_text.setdefault(_normalise(key), row)
    by_number: defaultdict[str, list[int]] = defaultdict(list)
    for text, row in by_text.items():
        by_number[_find_value(text)].append(row)

    def find(text: str) -> int | None:
        rows = by_number.get(_find_value(text), []) if _NUMBER.fullmatch(text) else []
        return by_text.get(text, rows[0] if len(rows) == 1 else None)

    return [find(_normalise(name)) for name in names]


def _find_value(text: str) -> str:
    """Give what numbers of the same value share: that of a double, as its last digit depends on who wrote it."""
    if not _NUMBER.fullmatch(text):
        return ""
    whole, _, fraction = text.partition(".")
    return f"{float(text):.15g}" if fraction.strip("0") else whole.lstrip("+0") or "0"


def _normalise(name: str) -> str:
    return name.strip().replace("\\", "/").removeprefix("stimuli/")


def _to_array(values: Sequence[str]) -> Array:
    texts = [value.strip() or "n/a" for value in values]
    numbers = pd.to_numeric(pd.Series(texts).replace("n/a", None), errors="coerce").to_numpy(float)
    is_number = ~np.isnan(numbers) | (np.array(texts) == "n/a")
    return numbers if is_number.all() and not np.isnan(numbers).all() else np.array(texts)

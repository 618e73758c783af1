"""Which rows of the events are trials: a condition on their columns, as a user writes it."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from keyword import iskeyword
from pathlib import Path

import numpy as np
import pandas as pd

from dnnbrain_app.errors import BadDataError, UsageError
from dnnbrain_app.records import Array

# A condition may come with somebody's configuration file: it compares, and cannot write a file or call anything else.
_METHODS = {"str", "isin", "isna", "notna", "between", "contains", "startswith", "endswith", "fullmatch", "lower"}
_QUOTED = re.compile("`([^`]*)`")


def select_rows(tables: Mapping[Path, pd.DataFrame], condition: str) -> dict[Path, pd.DataFrame]:
    """Keep the rows of events for which a condition holds.

    Parameters
    ----------
    tables : mapping of Path to DataFrame
        Events of all runs, as `read_events` gives them.
    condition : str
        In the language of `pandas.DataFrame.query`, without variables. Columns in which all tables have numbers only
        are compared as numbers, others as text. A missing value, or column, fulfils no comparison but ``!=``.

    Returns
    -------
    dict of Path to DataFrame
        The same tables with fewer rows.

    Raises
    ------
    UsageError
        If it is no condition.
    BadDataError
        If it names a column that no table has, does not fit what is in a column, or holds for no row.
    """
    joined = pd.concat([table.astype(object) for table in tables.values()], ignore_index=True)
    joined = joined.apply(_convert)
    try:
        chosen = _evaluate(joined, condition)
        if not chosen.any():
            raise BadDataError(f"holds for none of {len(joined)} rows")
    except UsageError as error:
        example = "\"trial_type == 'exp' and `my column` > 0\""
        raise UsageError(f"--trial-filter {condition!r}: {error}; write a condition such as {example}") from error
    except BadDataError as error:
        listed = _describe(joined)
        raise BadDataError(f"{next(iter(tables))}: --trial-filter {condition!r} {error}; {listed}") from error
    parts = np.split(chosen, np.cumsum([len(table) for table in tables.values()])[:-1])
    return {path: table[rows] for (path, table), rows in zip(tables.items(), parts, strict=True)}


def _convert(column: pd.Series) -> pd.Series:
    numbers = pd.to_numeric(column, errors="coerce").astype(float)
    if numbers.notna().any() and (numbers.notna() == column.notna()).all():
        return numbers
    return pd.Series(column.tolist(), column.index, dtype="str")


def _evaluate(table: pd.DataFrame, condition: str) -> Array:
    """Return, for each row, whether the condition holds."""
    plain = [name if name.isidentifier() and not iskeyword(name) else f"column_{i}_" for i, name in enumerate(table)]
    aliases = dict(zip(table.columns, plain, strict=True))
    text = _QUOTED.sub(lambda quoted: aliases.get(quoted[1].strip(), quoted[0]), condition.strip().replace("\n", " "))
    _check(text, plain)
    try:
        result = table.set_axis(plain, axis="columns").eval(text, engine="python", local_dict={}, global_dict={})
    except Exception as error:  # of any kind: what pandas does not know, text compared with a number
        raise BadDataError(f"does not fit the columns ({error})") from error
    if not isinstance(result, pd.Series) or not all(isinstance(value, bool | np.bool_) for value in result.dropna()):
        raise UsageError("compares nothing")
    return np.asarray(result.isin([True]), dtype=bool)


def _check(text: str, columns: list[str]) -> None:
    """Refuse all that is no comparison, and columns that are not there."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if unknown := _QUOTED.search(text):
            raise BadDataError(f"names a column {unknown[1]!r}, which is not there") from error
        raise UsageError("cannot be understood (== compares; names with spaces are put in ` `)") from error
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr not in _METHODS:
            raise UsageError(f".{node.attr} is not allowed")
        if isinstance(node, ast.MatMult):
            raise UsageError("@ is not allowed")
        if isinstance(node, ast.Name) and node.id not in columns:
            raise BadDataError(f"names a column {node.id!r}, which is not there (text needs quotes)")


def _describe(table: pd.DataFrame) -> str:
    numbers = [column for column in table if table[column].dtype == float]
    texts = [column for column in table if column not in numbers]
    return f"columns of numbers: {', '.join(numbers) or 'none'}; of text: {', '.join(texts) or 'none'}"

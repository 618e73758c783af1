"""From what the events say to names of files, by a table of the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dnnbrain_app.errors import BadDataError
from dnnbrain_app.stimuli.attributes import match_rows, read_table

_FILE = "stim_file"


def read_stim_map(path: Path, column: str) -> dict[str, str]:
    """Read a table that tells the file of each stimulus.

    Parameters
    ----------
    path : Path
        A .tsv. Rows in which one of the two is n/a are left out.
    column : str
        Its column with the names that the events have; ``""`` for the first. The files are in ``stim_file``, or in
        the other column of a table of two.

    Returns
    -------
    dict of str to str
        Files by names, both as the table spells them.

    Raises
    ------
    MissingInputError
        If the table is absent.
    BadDataError
        If it is no table, a column is not there, no row is left, or a name has two files.
    """
    table = read_table(path)
    table.columns = [str(name).strip() for name in table.columns]
    key = column or table.columns[0]
    others = [name for name in table.columns if name != key]
    if key not in table.columns or not others or (_FILE not in others and len(others) > 1):
        raise BadDataError(
            f"{path}: should have the columns {key!r}, as the events, and {_FILE!r}; "
            f"there are: {', '.join(table.columns)}"
        )
    file = _FILE if _FILE in others else others[0]
    files: dict[str, str] = {}
    for row, pair in enumerate(zip(table[key].str.strip(), table[file].str.strip(), strict=True), 1):
        if "n/a" in pair or "" in pair:
            continue
        if files.setdefault(*pair) != pair[1]:
            raise BadDataError(f"{path}: row {row}: {key} {pair[0]!r} is {pair[1]!r} here, {files[pair[0]]!r} above")
    if not files:
        raise BadDataError(f"{path}: no row has both {key} and {file}")
    return files


def map_names(names: Sequence[str], files: Mapping[str, str] | None) -> dict[str, str]:
    """Find the file of each name: the name itself where there is no table, else by text, else by number.

    ``46003.0`` is ``46003``. Names without a file are left out.
    """
    if files is None:
        return dict(zip(names, names, strict=True))
    keys = list(files)
    rows = match_rows(keys, names)
    return {name: files[keys[row]] for name, row in zip(names, rows, strict=True) if row is not None}

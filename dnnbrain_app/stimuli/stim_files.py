"""The stimuli without an experiment: a ``.stim.csv`` file, as DNNBrain has always had them, or all of a folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dnnbrain_app.errors import BadDataError, MissingInputError
from dnnbrain_app.stimuli.folders import Folder
from dnnbrain_app.stimuli.images import list_suffixes
from dnnbrain_app.stimuli.videos import VIDEO_SUFFIXES

KINDS = ("image", "video", "video_clip")
_NAME = "stimID"


@dataclass(frozen=True, slots=True, eq=False)
class StimFile:
    """What a ``.stim.csv`` file says.

    Parameters
    ----------
    kind : str
        ``image`` or ``video_clip``: a stimulus is a file. ``video``: it is a frame of one video.
    path : Path
        The folder of the files; the video itself if the stimuli are frames.
    rows : DataFrame
        A row each presentation, all as text: ``stimID`` first (a file name, or the number of a frame, from 1), then
        ``onset``, ``duration``, ``label``, ``condition``, ... as far as they are there.
    about : mapping of str to str
        The other lines of the header.
    """

    kind: str
    path: Path
    rows: pd.DataFrame
    about: Mapping[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """The distinct stimuli, in the order of the file."""
        return tuple(dict.fromkeys(self.rows[_NAME]))

    @property
    def table(self) -> pd.DataFrame:
        """A row each stimulus, for `find_stimuli`, without what differs between its presentations (onsets, ...)."""
        varies = self.rows.groupby(_NAME, sort=False).nunique().gt(1).any()
        return self.rows.drop_duplicates(_NAME).drop(columns=varies.index[varies])


def read_stim_file(path: Path, directory: Path | None = None) -> StimFile:
    """Read a ``.stim.csv`` file.

    The header has a ``key=value`` a line, with ``type`` and ``path`` among them, and ends with ``data=`` and the names
    of the columns; rows follow, separated by commas. Only the first ``=`` of a line counts. Spreadsheets may have
    added quotes, and commas at the ends of lines; a column may hold any text.

    Parameters
    ----------
    path : Path
        The file.
    directory : Path, optional
        Takes the place of its ``path``, which is that of the machine where the file was written. Else, a relative one
        is looked for beside the file, then in the current folder. It need not be there.

    Raises
    ------
    MissingInputError
        If the file is absent.
    BadDataError
        If it is not of this form; a line that is wrong is named.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise MissingInputError(f"{path}: does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadDataError(f"{path}: cannot be read as text ({error})") from error
    about, columns, start = _read_header(path, text.splitlines())
    kind = about.pop("type", "")
    if kind not in KINDS:
        raise BadDataError(f"{path}: type={kind}; should be {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    if not about.get("path") and directory is None:
        raise BadDataError(f"{path}: has no line path=, which names the folder of the stimuli")
    rows = _read_rows(path, text.splitlines(), columns, start)
    if kind == "video":
        _check_numbers(path, rows[_NAME])
    return StimFile(kind, _find_place(path, about.pop("path", ""), directory), rows, about)


def format_stim_file(
    kind: str, path: Path, columns: Mapping[str, Sequence[object]], about: Mapping[str, str] | None = None
) -> str:
    """Give the text of a ``.stim.csv`` file.

    Parameters
    ----------
    kind : str
        See `StimFile`.
    path : Path
        The folder of the files, or the video.
    columns : mapping of str to sequence
        ``stimID`` among them; all of one length.
    about : mapping of str to str, optional
        Further lines of the header.

    Raises
    ------
    BadDataError
        A name or a value that the format cannot hold, as it has a line break.
    """
    header = {"type": kind, "path": str(path), **(about or {}), "data": ",".join(columns)}
    lines = io.StringIO()
    lines.writelines(f"{key}={value}\n" for key, value in header.items())
    csv.writer(lines, lineterminator="\n").writerows(zip(*columns.values(), strict=True))
    text = lines.getvalue()
    n_rows = len(next(iter(columns.values()), ()))
    if len(text.splitlines()) != len(header) + n_rows:
        raise BadDataError("a line break within a name or a value; a .stim.csv file cannot hold it")
    return text


def list_stimuli(directory: Path) -> list[str]:
    """List all images and videos of a folder and the folders in it.

    Parameters
    ----------
    directory : Path
        Hidden files are left out, and folders of thumbnails.

    Returns
    -------
    list of str
        Names relative to the folder, sorted; told by their endings, so `find_stimuli` may refuse some.

    Raises
    ------
    MissingInputError
        If there is no such folder, or nothing in it.
    BadDataError
        If a folder in it is a link that leads out of it; `find_stimuli` refuses files that are.
    """
    suffixes = list_suffixes() | VIDEO_SUFFIXES
    names = sorted(name for name in Folder(directory).list_files() if Path(name).suffix.lower() in suffixes)
    if not names:
        raise MissingInputError(f"{directory}: no image or video in it ({', '.join(sorted(suffixes))})")
    return names


def _read_header(path: Path, lines: Sequence[str]) -> tuple[dict[str, str], list[str], int]:
    """Read up to the line ``data=``; returns the header, the columns and the number of the next line."""
    about: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        key, sign, value = line.strip().strip('"').partition("=")
        value = value.rstrip(", ").strip()
        if key.strip() == "data":
            columns = [column.strip().strip('"') for column in value.split(",")]
            if _NAME not in columns or len(set(columns)) < len(columns):
                raise BadDataError(f"{path}, line {number}: data={value}; should name {_NAME}, and each column once")
            return about, columns, number
        if sign:
            about[key.strip()] = value
        elif line.strip(", "):
            raise BadDataError(f"{path}, line {number}: {line!r} should be key=value; is it a .stim.csv file?")
    raise BadDataError(f"{path}: has no line data=, which names the columns; is it a .stim.csv file?")


def _read_rows(path: Path, lines: Sequence[str], columns: Sequence[str], start: int) -> pd.DataFrame:
    rows = []
    for number, line in enumerate(lines[start:], start + 1):
        fields = [field.strip() for field in next(csv.reader([line], skipinitialspace=True), [])]
        while len(fields) > len(columns) and not fields[-1]:
            fields.pop()
        if not any(fields):
            continue
        if len(fields) != len(columns):
            raise BadDataError(
                f"{path}, line {number}: {len(fields)} values for {len(columns)} columns ({', '.join(columns)}); "
                "a value with a comma needs quotes"
            )
        rows.append(fields)
    table = pd.DataFrame(rows, columns=list(columns), dtype=str)
    if table.empty or not table[_NAME].all():
        raise BadDataError(f"{path}: " + ("a row without stimID" if rows else "no stimuli after the line data="))
    return table[[_NAME, *(column for column in columns if column != _NAME)]]


def _check_numbers(path: Path, numbers: pd.Series) -> None:
    wrong = [text for text in numbers if not text.isdecimal() or int(text) < 1]
    if wrong:
        raise BadDataError(f"{path}: type=video, but stimID {wrong[0]!r} is not the number of a frame, from 1")


def _find_place(path: Path, value: str, directory: Path | None) -> Path:
    if directory is not None:
        return directory
    written = Path(value.replace("\\", "/")).expanduser()
    beside = path.parent / written
    return written if written.exists() and not beside.exists() else beside

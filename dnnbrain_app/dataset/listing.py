"""The files of a dataset that matter here, found with as few system calls as possible.

Only ``sub-<label>[/ses-<label>]/func`` of the participants asked for is read, and no file is opened or stat'ed: 200
participants with their fMRIPrep outputs (100 000 files) take a second or two this way, minutes with a general index.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dnnbrain_app.dataset.entities import applies_to, parse_entities
from dnnbrain_app.errors import InputOutputError, MissingInputError, UsageError

_VOLUMES = (
    ".nii.gz",
    ".nii",
    ".mgz",
    ".mgh",
    *(f"{v}.BRIK{z}" for v in ("", "+orig", "+acpc", "+tlrc") for z in ("", ".gz")),
)
_ENDINGS = (
    *(f"_{suffix}{extension}" for suffix in ("bold", "mask") for extension in _VOLUMES),
    *("_bold.dtseries.nii", "_bold.func.gii", ".L.func.gii", ".R.func.gii", "_preproc.nii.gz", "_brainmask.nii.gz"),
    *("_events.tsv", "_timeseries.tsv", "_regressors.tsv", "_confounds.tsv"),
    *("_bold.json", "_bold.dtseries.json", "_bold.func.json"),
)


@dataclass(frozen=True, slots=True, eq=False)
class File:
    """A file of the dataset and the entities of its name."""

    path: str
    directory: str
    entities: Mapping[str, str]

    @property
    def name(self) -> str:
        """Basename."""
        return os.path.basename(self.path)  # noqa: PTH119 - a hundred thousand Path objects cost more than the listing


def list_files(root: Path, participants: Sequence[str], database: Path | None = None) -> list[File]:
    """List the functional data, events, confounds, masks and sidecars of some participants.

    Parameters
    ----------
    root : Path
        Raw dataset or derivative.
    participants : sequence of str
        Labels without ``sub-``.
    database : Path, optional
        Folder of a pybids database to take the list from; made when absent.

    Returns
    -------
    list of File
        In no particular order; files at the root, participant and session level (inheritance) included.
    """
    paths: Iterable[str] = _scan(root, participants) if database is None else _query(root, participants, database)
    files = []
    for path in paths:
        if path.endswith(_ENDINGS):
            directory, _, name = path.rpartition("/")
            files.append(File(path, directory, parse_entities(name)))
    return files


def _scan(root: Path, participants: Iterable[str]) -> Iterator[str]:
    yield from _read_folder(str(root))[0]
    for label in participants:
        files, folders = _read_folder(f"{root}/sub-{label}")
        yield from files
        for folder in folders:
            files, folders_below = _read_folder(folder)
            yield from files
            for below in folders_below:
                yield from _read_folder(below)[0]


def _read_folder(folder: str) -> tuple[list[str], list[str]]:
    """Return the files that matter and the folders to go on with, told by their names alone."""
    files: list[str] = []
    folders: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(_ENDINGS):
                    files.append(entry.path)
                elif entry.name == "func" or entry.name.startswith("ses-"):
                    folders.append(entry.path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise InputOutputError(f"{folder}: cannot be listed ({error.strerror})") from error
    return files, folders


def _query(root: Path, participants: Sequence[str], database: Path) -> list[str]:
    from bids.layout import BIDSLayout, BIDSLayoutIndexer, models

    others = re.compile(rf"/sub-(?!(?:{'|'.join(map(re.escape, participants))})(?:/|_|$))")
    indexer = BIDSLayoutIndexer(
        validate=False, index_metadata=False, ignore=[others, re.compile(r"/(?:figures|log|derivatives|sourcedata)/")]
    )
    try:
        layout = BIDSLayout(root, validate=False, database_path=database, indexer=indexer)
    except Exception as error:  # pybids and SQLite raise many kinds
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"--bids-database-dir {database}: pybids cannot use it ({reason}); remove it, or leave the option out"
        ) from error
    if Path(layout.root).resolve() != root.resolve():
        raise UsageError(
            f"--bids-database-dir {database}: the database is of {layout.root}, not of {root}; name another folder"
        )
    # pybids resolves the root; the paths handed on start with the root as it was given
    paths = [f"{root}{path[len(str(layout.root)) :]}" for (path,) in layout.session.query(models.BIDSFile.path)]
    known = {label for label in participants if any(path.startswith(f"{root}/sub-{label}/") for path in paths)}
    stale = [label for label in participants if label not in known and (root / f"sub-{label}").is_dir()]
    if stale:
        raise MissingInputError(
            f"--bids-database-dir {database}: the database does not know participant {', '.join(stale)} of {root}; "
            "it is older than the data, or was made for other participants: remove it"
        )
    wanted = tuple(f"{root}/sub-{label}/" for label in participants)
    return [path for path in paths if path.startswith(wanted) or path.rpartition("/")[0] == str(root)]


class Inheritance:
    """The files of one kind, asked by BIDS's inheritance principle.

    Parameters
    ----------
    root : Path
        Dataset within which files are inherited.
    files : iterable of File
        Candidates.
    """

    def __init__(self, root: Path, files: Iterable[File]) -> None:
        self._root = root
        self._by_folder: dict[str, list[File]] = defaultdict(list)
        for file in files:
            self._by_folder[file.directory].append(file)

    def find_all(self, entities: Mapping[str, str]) -> list[File]:
        """Return the files that apply to a recording, the nearest and most specific first."""
        folders = [f"{self._root}"]
        folders.append(f"{folders[0]}/sub-{entities['sub']}")
        if "ses" in entities:
            folders.append(f"{folders[-1]}/ses-{entities['ses']}")
        folders.append(f"{folders[-1]}/func")
        found = []
        for folder in reversed(folders):
            here = [file for file in self._by_folder.get(folder, ()) if applies_to(file.entities, entities)]
            found += sorted(here, key=lambda file: (-len(file.entities), file.name))
        return found

    def find_nearest(self, entities: Mapping[str, str]) -> File | None:
        """Return the file that applies to a recording, if there is one."""
        return next(iter(self.find_all(entities)), None)

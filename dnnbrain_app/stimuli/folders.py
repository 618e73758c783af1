"""The folder of the stimuli: finding names in it, and never a file outside."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

from dnnbrain_app.errors import BadDataError, MissingInputError
from dnnbrain_app.stimuli.images import list_suffixes
from dnnbrain_app.stimuli.stores import split_store
from dnnbrain_app.stimuli.videos import VIDEO_SUFFIXES

_URL = re.compile(r"[A-Za-z][\w+.-]*://")
_DRIVE = re.compile(r"[A-Za-z]:")
_THUMBNAILS = {"__macosx", "@eadir", "thumbs", "thumbnails"}  # folders of macOS, Synology, picture viewers
_KINDS = ("_image", "_video", "_audiovideo")  # BEP044: the files of the stimulus stim-<label>


class RefusedPathError(BadDataError):
    """A name that leads out of the folder of the stimuli."""


class AmbiguousNameError(BadDataError):
    """A name that several files could mean."""


class Folder:
    """The folder of the stimuli.

    Parameters
    ----------
    directory : Path
        Links in it may lead to files within it, or into the git annex of the dataset around it.

    Raises
    ------
    MissingInputError
        If it does not exist.
    """

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise MissingInputError(f"folder of the stimuli {directory}: does not exist; name it with --stimuli-dir")
        self.directory = directory.absolute()
        home = directory.resolve()
        datasets = [folder for folder in (home, *home.parents) if (folder / ".git").exists()]
        annexes = [(folder / ".git").resolve() / "annex" for folder in datasets[:1]]
        self._roots = (home, *annexes)
        self._is_inside: dict[Path, bool] = {}  # of folders: following links for each file would take longer

    def locate(self, name: str) -> tuple[Path, str]:
        """Find the file of a stimulus.

        Parameters
        ----------
        name : str
            Path relative to the folder; backslashes count as separators. What has no such path is looked for as
            described by `find_stimuli`. After the name of an HDF5 file, a dataset and a row may follow.

        Returns
        -------
        path : Path
            Of the file, or of a row in it (see `split_store`).
        remark : str
            What the user should know: ``prefix`` (a leading ``stimuli/`` was dropped), ``spelling`` (case, or .jpeg
            for .jpg), ``below`` (it is in a folder below); or nothing.

        Raises
        ------
        MissingInputError
            If it is absent.
        AmbiguousNameError
            If several files could be meant.
        RefusedPathError
            If it leads out of the folder.
        """
        text = name.strip().replace("\\", "/")
        if _URL.match(text):
            raise RefusedPathError(f"{name!r} is a URL; a path within the folder is needed")
        if text.startswith("/") or _DRIVE.match(text) or ".." in text.split("/"):
            raise RefusedPathError(f"{name!r} leads out of the folder; a path within it is needed")
        place = split_store(self.directory / text)
        file, remark = self._find(name, place[0].relative_to(self.directory).as_posix() if place else text)
        self._refuse_way_out(name, file)
        return (file / place[1] / str(place[2]) if place else file), remark

    def list_files(self) -> Iterator[str]:
        """List all files by name, but for hidden ones and thumbnails; links between folders are not followed."""
        for name, is_folder in self._walk():
            if is_folder:
                self._refuse_way_out(name, self.directory / name)
            else:
                yield name

    def _walk(self) -> Iterator[tuple[str, bool]]:
        for parent, folders, files in os.walk(self.directory):
            folders[:] = [name for name in folders if not name.startswith(".") and name.lower() not in _THUMBNAILS]
            here = Path(parent).relative_to(self.directory)
            yield from (((here / name).as_posix(), True) for name in folders)
            yield from (((here / name).as_posix(), False) for name in files if name[0] != ".")

    def _find(self, name: str, text: str) -> tuple[Path, str]:
        for spelled, remark in ((text, ""), (text.removeprefix("stimuli/"), "prefix")):
            if _is_file(path := self.directory / spelled):
                return path, remark
        wanted = PurePosixPath(text.removeprefix("stimuli/"))
        found = self._search(wanted) if wanted.name else []
        if len(found) > 1:
            raise AmbiguousNameError(f"{name!r} ({' or '.join(map(repr, found[:3]))})")
        path = self.directory / (found[0] if found else text)
        if not found or not _is_file(path):
            raise MissingInputError(_explain_missing(name, path))
        return path, _remark(wanted, PurePosixPath(found[0]))

    def _search(self, wanted: PurePosixPath) -> Sequence[str]:
        """List the files that a name could mean: more than one only if none of them is nearer than the others."""
        *folders, last = map(_fold, wanted.parts)
        keys = [last + kind for kind in _KINDS if last.startswith("stim-")]
        found = [name for key in keys for name in self._index.get(key, ())] or self._index.get(last, [])
        parents = {name: [*map(_fold, PurePosixPath(name).parts[:-1])] for name in found}
        found = [name for name in found if parents[name][len(parents[name]) - len(folders) :] == folders]
        there = [name for name in found if parents[name] == folders and _fold(PurePosixPath(name).name) == last]
        exact = [name for name in there or found if _is_spelled(wanted, PurePosixPath(name))]
        return exact or there or found

    @cached_property
    def _index(self) -> dict[str, list[str]]:
        """All files by name, images and videos by the name without its ending, too."""
        index: defaultdict[str, list[str]] = defaultdict(list)
        suffixes = list_suffixes() | VIDEO_SUFFIXES
        for name, is_folder in self._walk():
            path = PurePosixPath(name)
            for key in {path.name, path.stem} if path.suffix.lower() in suffixes else {path.name}:
                if not is_folder:
                    index[_fold(key)].append(name)
        return {key: sorted(names) for key, names in index.items()}

    def _refuse_way_out(self, name: str, path: Path) -> None:
        if path.is_symlink():
            if not self._contains(path.resolve()):
                raise RefusedPathError(f"{name!r} is a link that leads out of the folder, to {path.resolve()}")
            return
        if path.parent not in self._is_inside:
            self._is_inside[path.parent] = self._contains(path.parent.resolve())
        if not self._is_inside[path.parent]:
            raise RefusedPathError(f"{name!r} is a link that leads out of the folder, to {path.resolve()}")

    def _contains(self, target: Path) -> bool:
        return any(target.is_relative_to(root) for root in self._roots)


def _fold(name: str) -> str:
    """Spell names alike that differ in case, in .jpeg for .jpg, or in how macOS composes accents."""
    text = unicodedata.normalize("NFC", name).casefold()
    return text.removesuffix(".jpeg") + ".jpg" if text.endswith(".jpeg") else text


def _is_spelled(wanted: PurePosixPath, found: PurePosixPath) -> bool:
    *folders, last = found.parts[-len(wanted.parts) :]
    return tuple(folders) == wanted.parts[:-1] and last.startswith(wanted.name)


def _remark(wanted: PurePosixPath, found: PurePosixPath) -> str:
    if not _is_spelled(wanted, found):
        return "spelling"
    return "below" if len(found.parts) > len(wanted.parts) and found.name == wanted.name else ""


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a text too long for a name
        return False


def _explain_missing(name: str, path: Path) -> str:
    try:
        if path.is_symlink():
            return f"{name!r}: its content is not here; fetch it with 'datalad get'"
        return f"{name!r} is a folder" if path.is_dir() else repr(name)
    except OSError:
        return repr(name)

"""The folder of the stimuli: finding names in it, and never a file outside."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from dnnbrain_app.errors import BadDataError, MissingInputError

_URL = re.compile(r"[A-Za-z][\w+.-]*://")
_DRIVE = re.compile(r"[A-Za-z]:")
_THUMBNAILS = {"__macosx", "@eadir", "thumbs", "thumbnails"}  # folders of macOS, Synology, picture viewers


class RefusedPathError(BadDataError):
    """A name that leads out of the folder of the stimuli."""


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

    def locate(self, name: str) -> Path:
        """Find the file of a stimulus.

        Parameters
        ----------
        name : str
            Path relative to the folder. Backslashes count as separators, and a leading ``stimuli/`` is forgiven.

        Raises
        ------
        MissingInputError
            If it is absent; a file whose name differs in case only is named.
        RefusedPathError
            If it leads out of the folder.
        """
        text = name.strip().replace("\\", "/")
        if _URL.match(text):
            raise RefusedPathError(f"{name!r} is a URL; a path within the folder is needed")
        if text.startswith("/") or _DRIVE.match(text) or ".." in text.split("/"):
            raise RefusedPathError(f"{name!r} leads out of the folder; a path within it is needed")
        path = self.directory / text
        if text.startswith("stimuli/") and not path.exists():
            path = self.directory / text.removeprefix("stimuli/")
        if not path.is_file():
            raise MissingInputError(self._explain_missing(name, path))
        self._refuse_way_out(name, path)
        return path

    def list_files(self) -> Iterator[str]:
        """List all files by name, but for hidden ones and thumbnails; links between folders are not followed."""
        for parent, folders, files in os.walk(self.directory):
            here = Path(parent)
            folders[:] = [name for name in folders if not name.startswith(".") and name.lower() not in _THUMBNAILS]
            for name in folders:
                self._refuse_way_out((here / name).relative_to(self.directory).as_posix(), here / name)
            yield from ((here / name).relative_to(self.directory).as_posix() for name in files if name[0] != ".")

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

    def _explain_missing(self, name: str, path: Path) -> str:
        if path.is_symlink():
            return f"{name!r}: its content is not here; fetch it with 'datalad get'"
        if path.is_dir():
            return f"{name!r} is a folder"
        found = self.directory
        for part in path.relative_to(self.directory).parts:
            children = found.iterdir() if found.is_dir() else ()
            candidates = [child for child in children if child.name.lower() == part.lower()]
            if not candidates:
                return f"{name!r}"
            found = candidates[0]
        return f"{name!r}: there is {str(found.relative_to(self.directory))!r}; upper and lower case must agree"

"""From the names in the events to the files of the stimuli, each checked, none outside the folder of the stimuli."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from dnnbrain_app.errors import BadDataError, DnnbrainError, MissingInputError
from dnnbrain_app.records import StimulusSet
from dnnbrain_app.stimuli.attributes import match_attributes, read_table
from dnnbrain_app.stimuli.digests import Known, digest_stimulus
from dnnbrain_app.stimuli.folders import AmbiguousNameError, Folder, RefusedPathError
from dnnbrain_app.stimuli.mapping import map_names

logger = logging.getLogger(__name__)

_LISTED = 10
_REMARKS = {
    "prefix": "named with a leading stimuli/, which BIDS leaves out; it was dropped",
    "spelling": "spelled in another way than their files (upper and lower case, .jpg and .jpeg)",
    "below": "not where the events say, but in a folder below, where one file has the name",
    "cmyk": "CMYK, and turned into RGB without a colour profile",
    "profile": "in colours other than sRGB by their profiles, which are ignored",
    "pages": "of several pages, of which the first is used",
}


def find_stimuli(
    names: Iterable[str],
    directory: Path,
    *,
    files: Mapping[str, str] | None = None,
    table: pd.DataFrame | None = None,
    known: Known | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> StimulusSet:
    """Find the image or clip of each stimulus.

    Parameters
    ----------
    names : iterable of str
        Paths relative to ``directory``, as the events have them; repetitions are dropped. Backslashes count as
        separators, and a leading ``stimuli/`` is forgiven. A row of a dataset in an HDF5 file is named as if the file
        were a folder: ``nsd_stimuli.hdf5/imgBrick/46002``, counted from 0. What is not there may be spelled in another
        case, be in a folder below, or be an identifier: a name without its ending, in BEP044 ``stim-<label>`` for
        ``stim-<label>_image.png`` or a video, as long as only one file fits.
    directory : Path
        Folder of the stimuli.
    files : mapping of str to str, optional
        The file of each name, if the names are none (see `read_stim_map`).
    table : DataFrame, optional
        Of text, for the attributes; the row of a stimulus is found by the first column (``stim_file``, ``stim_id``,
        ...). Default: ``stimuli.tsv`` in the folder, if there is one.
    known : mutable mapping, optional
        Digests of earlier runs (see `digest_stimulus`), which grows; plain enough for JSON. Files that have not
        changed since are not read.
    progress : callable, optional
        Called with the number of stimuli that are done, and of all.

    Returns
    -------
    StimulusSet
        Sorted by name, with the digest of each (see `digest_stimulus`). Numeric attributes are float (NaN where
        missing), others text (``n/a``).

    Raises
    ------
    MissingInputError
        If the folder or files are absent, or a name has no file in ``files``.
    BadDataError
        If a path leads out of the folder (links into the dataset's git annex are followed), a name could mean several
        files, a file is empty, is neither image nor video, or is too large; or there are no stimuli. All
        failures are counted, the first ten of each kind listed.
    """
    ids = sorted(set(map(str, names)))
    if not ids:
        raise BadDataError("no stimuli are named")
    folder, known = Folder(directory), {} if known is None else known
    mapped = map_names(ids, files)
    paths, digests = [], []
    remarks: dict[str, list[str]] = defaultdict(list)
    failures: dict[type[DnnbrainError], list[str]] = defaultdict(list)
    for number, name in enumerate(ids, 1):
        try:
            path, spelling = folder.locate(_require_file(name, mapped))
            digest, remark = digest_stimulus(path, known)
            paths.append(path)
            digests.append(digest)
            remarks[remark].append(name)
            remarks[spelling].append(name)
        except DnnbrainError as error:
            failures[type(error)].append(str(error))
        if progress is not None:
            progress(number, len(ids))
    _raise_failures(failures, len(ids), directory)
    _warn(len(ids), remarks)
    source = directory / "stimuli.tsv"
    if table is None and source.is_file():
        table = read_table(source)
    attributes = {} if table is None else match_attributes(table, ids, str(source))
    return StimulusSet(tuple(ids), tuple(paths), tuple(digests), attributes)


def find_missing(names: Iterable[str], directory: Path, files: Mapping[str, str] | None = None) -> list[str]:
    """List the stimuli without a file in the folder, sorted, as `find_stimuli` does; contents are not looked at."""
    ids = sorted(set(map(str, names)))
    if not directory.is_dir():
        return ids
    folder, missing = Folder(directory), []
    mapped = map_names(ids, files)
    for name in ids:
        try:
            folder.locate(_require_file(name, mapped))
        except DnnbrainError:
            missing.append(name)
    return missing


def _require_file(name: str, files: Mapping[str, str]) -> str:
    if name not in files:
        raise MissingInputError(f"{name!r} (no row of --stim-map)")
    return files[name]


def _raise_failures(failures: Mapping[type[DnnbrainError], Sequence[str]], n_stimuli: int, directory: Path) -> None:
    headings: dict[type[DnnbrainError], str] = {
        RefusedPathError: "have a path that is refused",
        AmbiguousNameError: f"could be any of several files in {directory}",
        MissingInputError: f"are not in {directory} (another folder: --stimuli-dir)",
        BadDataError: "are not readable images or videos",
    }
    texts = []
    for kind, heading in headings.items():
        messages = failures.get(kind, ())
        if messages:
            more = f", ... ({len(messages)} in all)" if len(messages) > _LISTED else ""
            texts.append(f"{len(messages)} of {n_stimuli} stimuli {heading}: {', '.join(messages[:_LISTED])}{more}")
    if texts:
        only_missing = set(failures) == {MissingInputError}
        raise (MissingInputError if only_missing else BadDataError)("; ".join(texts))


def _warn(n_stimuli: int, remarks: Mapping[str, Sequence[str]]) -> None:
    for remark, text in _REMARKS.items():
        if marked := remarks.get(remark):
            logger.warning("%d of %d stimuli (%s, ...) are %s", len(marked), n_stimuli, marked[0], text)

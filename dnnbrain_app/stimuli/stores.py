"""Stimuli that are rows of a dataset in an HDF5 file, e.g. ``nsd_stimuli.hdf5/imgBrick/46002``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from dnnbrain_app.errors import BadDataError, MissingInputError
from dnnbrain_app.records import Array

_SUFFIXES = {".h5", ".hdf5", ".hdf"}
_ROW = re.compile(r"[0-9]{1,18}")
_LISTED = 10


def split_store(path: Path) -> tuple[Path, str, int] | None:
    """Split the path of a stimulus into file, dataset and row (from 0).

    Returns
    -------
    tuple, or None
        None if no part of the path before the last is named as an HDF5 file; a folder of such a name is none.

    Raises
    ------
    BadDataError
        If what follows the file is not a dataset and a row.
    """
    for store in path.parents:
        if store.suffix.lower() in _SUFFIXES and not store.is_dir():
            dataset, _, row = path.relative_to(store).as_posix().rpartition("/")
            if not dataset or not _ROW.fullmatch(row):
                raise BadDataError(f"{path}: should name a dataset and a row, from 0: {store.name}/imgBrick/0")
            return store, dataset, int(row)
    return None


def read_row(store: Path, dataset: str, row: int) -> Array:
    """Read one picture of an HDF5 file; no other row is read.

    Parameters
    ----------
    store : Path
        The file.
    dataset : str
        Of shape (n, height, width), (n, height, width, 1) or (n, height, width, 3), of 8-bit unsigned integers.
    row : int
        From 0.

    Returns
    -------
    array of uint8, shape (height, width), (height, width, 1) or (height, width, 3)
        As it is stored.

    Raises
    ------
    MissingInputError
        If the file is absent.
    BadDataError
        If it is no HDF5 file or is damaged, the dataset is not there (those that are there are listed), is none of
        pictures or lies in another file, or the row is beyond its end.
    """
    with _opening(store) as file:
        found = _find_dataset(file, dataset)
        has_pictures = found.ndim in (3, 4) and 0 not in found.shape[1:] and found.shape[3:] in ((), (1,), (3,))
        if found.dtype != np.uint8 or not has_pictures:
            raise BadDataError(
                f"dataset {dataset!r} is of type {found.dtype} and shape {found.shape}; pictures of type uint8 and "
                "shape (n, height, width, 3), (n, height, width, 1) or (n, height, width) are read"
            )
        if row >= len(found):
            raise BadDataError(f"dataset {dataset!r} has {len(found)} rows, counted from 0; there is no row {row}")
        return np.asarray(found[row])


@contextmanager
def _opening(store: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(store, "r") as file:
            yield file
    except FileNotFoundError as error:
        raise MissingInputError(f"{store}: does not exist") from error
    except BadDataError as error:
        raise BadDataError(f"{store}: {error}") from error
    except (OSError, RuntimeError, KeyError) as error:  # a damaged file, or a compression that is not installed
        raise BadDataError(f"{store}: cannot be read as HDF5 ({error})") from error


def _find_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        names: list[str] = []
        file.visititems(lambda key, item: names.append(key) if isinstance(item, h5py.Dataset) else None)
        more = f", ... ({len(names)} in all)" if len(names) > _LISTED else ""
        raise BadDataError(f"has no dataset {name!r}; there are: {', '.join(names[:_LISTED]) or 'none'}{more}")
    if found.is_virtual or found.external or found.file.filename != file.filename:
        raise BadDataError(f"dataset {name!r} lies in another file; pictures within {file.filename} are read")
    return found

"""RDMs out and in again, in the ``.rdm.h5`` layout of the original DNNBrain.

The root's attribute ``type`` says whose RDMs they are: ``bRDM``, a dataset a region of shape (n_pairs,); ``dRDM``, a
dataset a layer of shape (1, n_pairs). The pairs are the upper triangle, row by row. The original names neither items
nor metric; ours are further attributes of the root (``items``, ``metric``), which its readers do not look at, and
``order``, because HDF5 lists datasets by the alphabet and layers have an order.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from dnnbrain_app.derivatives.files import write_atomically, write_json
from dnnbrain_app.derivatives.names import sidecar
from dnnbrain_app.errors import BadDataError, InputOutputError, MissingInputError
from dnnbrain_app.records import Array, Rdm

RdmKind = Literal["bRDM", "dRDM"]


def write_rdms(path: Path, rdms: Sequence[Rdm], description: Mapping[str, Any], kind: RdmKind) -> list[Path]:
    """Write RDMs of the same items, with their JSON; the same numbers give the same bytes.

    Parameters
    ----------
    path : Path
        The HDF5 file.
    rdms : sequence of Rdm
        One a region or layer; their order is kept.
    description : mapping
        The sidecar, written as it is.
    kind : {'bRDM', 'dRDM'}
        RDMs of regions, or of layers.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    BadDataError
        No RDM, two of one name, or RDMs that differ in their items or metric.
    """
    if not rdms:
        raise BadDataError(f"{path.name}: no RDM to write")
    first = rdms[0]
    names = [rdm.name for rdm in rdms]
    for rdm in rdms:
        if rdm.items != first.items or rdm.metric != first.metric:
            raise BadDataError(f"{path.name}: the RDMs of {first.name} and {rdm.name} differ in items or metric")
        if names.count(rdm.name) > 1:
            raise BadDataError(f"{path.name}: two RDMs are named {rdm.name!r}")
    write_atomically(path, lambda part: _fill(part, rdms, kind))
    write_json(sidecar(path), description)
    return [path, sidecar(path)]


def _fill(path: Path, rdms: Sequence[Rdm], kind: RdmKind) -> None:
    # In memory first: on a full disk, HDF5 takes the whole process down with it.
    buffer = io.BytesIO()
    # The format of HDF5 1.8: before it, an attribute holds 64 KiB at most, which a thousand long names exceed.
    with h5py.File(buffer, "w", libver=("v108", "v108")) as file:
        file.attrs["type"] = kind
        file.attrs["metric"] = rdms[0].metric
        file.attrs["items"] = np.array(rdms[0].items, dtype=h5py.string_dtype())
        file.attrs["order"] = np.array([rdm.name for rdm in rdms], dtype=h5py.string_dtype())
        for rdm in rdms:
            values = np.asarray(rdm.dissimilarities, dtype=np.float64)
            shaped = values if kind == "bRDM" else values[np.newaxis]
            file.create_dataset(_make_key(rdm.name), data=shaped, compression="gzip", track_times=False)
    path.write_bytes(buffer.getbuffer())


def _make_key(name: str) -> str:
    return name.replace("/", "|")  # to HDF5 a slash is a group


def read_rdms(path: Path) -> list[Rdm]:
    """Read RDMs, ours or the original's (whose items are numbered from 1, as it stores no names).

    Parameters
    ----------
    path : Path
        The HDF5 file.

    Returns
    -------
    list of Rdm
        In the order in which they were written; by the alphabet for a file of the original.

    Raises
    ------
    MissingInputError
        The file does not exist.
    InputOutputError
        The file is no HDF5 file.
    BadDataError
        The file holds no RDMs, or several RDMs for one layer (the original's ``iter_axis``).
    """
    if not path.is_file():
        raise MissingInputError(f"{path} does not exist")
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("type") not in ("bRDM", "dRDM"):
                raise BadDataError(f"{path} holds no RDMs: its attribute 'type' is neither bRDM nor dRDM")
            names = [str(name) for name in file.attrs.get("order", list(file))]
            values = {name: np.asarray(file[_make_key(name)][()], dtype=np.float64) for name in names}
            metric = str(file.attrs.get("metric", "unknown"))
            items = tuple(str(item) for item in file.attrs.get("items", ()))
    except (OSError, KeyError) as error:
        raise InputOutputError(f"{path} cannot be read: {error}") from error
    return [_make_rdm(path, name, value, items, metric) for name, value in values.items()]


def _make_rdm(path: Path, name: str, values: Array, items: tuple[str, ...], metric: str) -> Rdm:
    if values.ndim == 2 and len(values) > 1:
        raise BadDataError(f"{path}: {name} holds {len(values)} RDMs, one a channel or position; one is expected")
    values = values.ravel()
    if not items:
        n = (1 + math.isqrt(1 + 8 * len(values))) // 2
        items = tuple(str(i + 1) for i in range(n))
    return Rdm(name, values, items, metric)

"""What a BOLD file says of itself in its first kilobytes."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

import nibabel as nib
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.freesurfer.mghformat import MGHError
from nibabel.spatialimages import HeaderDataError, ImageDataError
from nibabel.wrapstruct import WrapStructError

from dnnbrain_app.errors import BadDataError, MissingInputError

_DAMAGE = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(zlib.error, ImageFileError, HeaderDataError, ImageDataError, WrapStructError, MGHError, ExpatError),
)
_SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}
_AFNI_SECONDS = {77001: 1e-3, 77002: 1.0}


@dataclass(frozen=True, slots=True)
class Header:
    """Size and timing of a time series.

    ``repetition_time`` is in seconds, None where the file does not tell. ``n_vertices`` is that of a surface; CIFTI
    files, which may have several, do not have it.
    """

    n_volumes: int
    repetition_time: float | None
    n_vertices: int = 0


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """Turn what readers raise on a file that is absent, cut off or of another kind into our errors, with its path."""
    try:
        if path.stat().st_size == 0:
            raise BadDataError(f"{path}: the file is empty")
        yield
    except FileNotFoundError as error:
        # AFNI has two files, of which the one that the name does not tell may be lacking
        raise MissingInputError(explain_absence(Path(error.filename or path))) from error
    except _DAMAGE as error:
        reason = f"{type(error).__name__}: {error}"
        raise BadDataError(f"{path}: cannot be read; it is cut off, damaged or of another format ({reason})") from error


def explain_absence(path: Path) -> str:
    """Say that a file is not there: a git-annex file whose content was not fetched is a symbolic link to nowhere."""
    return f"{path}: {'its content is not here; fetch it with datalad get' if path.is_symlink() else 'does not exist'}"


def load_image(path: Path, **options: Any) -> Any:
    """Open an image with nibabel, which reads the data when they are asked for."""
    with opening(path):
        return _load_mgh(path, **options) if path.name.endswith((".mgh", ".mgz")) else nib.load(path, **options)


def _load_mgh(path: Path, **options: Any) -> Any:
    # nibabel.load leaves the file open; the end of the header stands after the data
    with gzip.open(path) if path.name.endswith(".mgz") else path.open("rb") as file:
        header = nib.MGHImage.header_class.from_fileobj(file)
    return nib.MGHImage(ArrayProxy(str(path), header, **options), header.get_affine(), header)


def read_header(paths: Sequence[Path]) -> Header:
    """Read size and timing of a run without reading its data.

    Parameters
    ----------
    paths : sequence of Path
        One file of grayordinates or volumes, or those of both hemispheres.

    Raises
    ------
    BadDataError
        If a file is damaged, is not a time series, or the hemispheres differ in length.
    MissingInputError
        If a file is absent.
    """
    headers = [_read_one(path) for path in paths]
    for path, header in zip(paths, headers, strict=True):
        if header.n_volumes < 2:
            raise BadDataError(f"{path}: {header.n_volumes} volume(s); a time series is needed")
    if len({header.n_volumes for header in headers}) > 1:
        texts = [f"{path} has {header.n_volumes} volumes" for path, header in zip(paths, headers, strict=True)]
        raise BadDataError(" and ".join(texts))
    return headers[0]


def count_vertices(path: Path) -> int:
    """Count the vertices of the mesh that a file of one hemisphere lies on."""
    return _read_one(path).n_vertices


def _read_one(path: Path) -> Header:
    with opening(path):
        return next(read for ending, read in _READERS.items() if path.name.endswith(ending))(path)


def _read_nifti(path: Path) -> Header:
    # not by nibabel.load: with thousands of runs its millisecond each is most of the time that indexing takes
    with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
        block = file.read(540)
    header = _parse_nifti(block)
    shape, unit = header.get_data_shape(), header.get_xyzt_units()[1]
    step = float(header["pixdim"][4]) * _SECONDS.get(unit, 0.0)
    return _describe_volumes(shape, step)


def _describe_volumes(shape: tuple[int, ...], step: float) -> Header:
    if len(shape) not in (3, 4):
        raise ValueError(f"{len(shape)} dimensions, not 4")
    n_volumes = int(shape[3]) if len(shape) == 4 else 1
    return Header(n_volumes, step if step > 0 else None, math.prod(map(int, shape[:3])))


def _read_mgh(path: Path) -> Header:
    header = _load_mgh(path).header
    shape = header.get_data_shape()
    return _describe_volumes(shape, _to_seconds(float(header.get_zooms()[3])) if len(shape) == 4 else 0.0)


def _read_afni(path: Path) -> Header:
    header = nib.load(path).header
    shape, unit = header.get_data_shape(), header.info.get("TAXIS_NUMS", (0, 0, 0))[2]
    step = float(header.get_zooms()[3]) * _AFNI_SECONDS.get(unit, 0.0) if len(shape) == 4 else 0.0
    return _describe_volumes(shape, step)


def _to_seconds(step: float) -> float:
    # the format names no unit: FreeSurfer writes milliseconds, others seconds
    return step * 1e-3 if step >= 50 else step


def _parse_nifti(block: bytes) -> Any:
    size = block[:4]
    if 348 in (int.from_bytes(size, "little"), int.from_bytes(size, "big")):
        return nib.Nifti1Header(block[:348], check=False)
    return nib.Nifti2Header(block)


def _read_cifti(path: Path) -> Header:
    # nibabel parses all of the XML, which lists every vertex: 100 times slower than looking for the series
    with path.open("rb") as file:
        header = _parse_nifti(file.read(540))
        xml = file.read(max(int(header["vox_offset"]) - file.tell(), 0))
    if b"CIFTI_INDEX_TYPE_SERIES" not in xml:
        raise ValueError("no CIFTI time series in the header")
    match = re.search(rb"<MatrixIndicesMap[^>]*CIFTI_INDEX_TYPE_SERIES[^>]*>", xml)
    tag = match.group() if match else b""

    def attribute(name: str, default: str) -> str:
        value = re.search(rf'{name}="([^"]*)"'.encode(), tag)
        return value.group(1).decode() if value else default

    step = float(attribute("SeriesStep", "0")) * 10.0 ** int(attribute("SeriesExponent", "0"))
    seconds = step if attribute("SeriesUnit", "SECOND") == "SECOND" else 0.0
    return Header(int(header["dim"][5]), seconds if seconds > 0 else None)


def open_matrix(path: Path) -> Any:
    """Open the values of a CIFTI file, shape (n_maps, n_grayordinates), without parsing its XML: slice to read."""
    with path.open("rb") as file:
        header = _parse_nifti(file.read(540))
    return ArrayProxy(path, header, mmap=False).reshape(header.get_data_shape()[-2:])


def read_models(path: Path) -> bytes:
    """Return the part of a CIFTI header that lists the grayordinates, as it stands: equal bytes are equal spaces."""
    with opening(path), path.open("rb") as file:
        start = int(_parse_nifti(file.read(540))["vox_offset"])
        xml = file.read(max(start - 540, 0))
        return xml[xml.index(b"<BrainModel") : xml.rindex(b"</BrainModel>")]


def _read_gifti(path: Path) -> Header:
    with path.open("rb") as file:
        text = file.read(1 << 16).decode("utf-8", errors="replace")
    if "<GIFTI" not in text:
        raise ValueError("no <GIFTI> element")
    arrays = int(re.findall(r'NumberOfDataArrays="(\d+)"', text)[0])
    first = text.partition("<DataArray")[2].partition(">")[0]
    sizes = {int(axis): int(size) for axis, size in re.findall(r'Dim(\d)="(\d+)"', first)}
    step = re.search(r"TimeStep\s*(?:\]\]>)?\s*</Name>\s*<Value>\s*(?:<!\[CDATA\[)?\s*([0-9.eE+-]+)", text)
    seconds = _to_seconds(float(step.group(1)) if step else 0.0)
    return Header(arrays * sizes.get(1, 1), seconds if seconds > 0 else None, sizes[0])


_READERS = {
    ".gii": _read_gifti,
    ".dtseries.nii": _read_cifti,
    ".mgh": _read_mgh,
    ".mgz": _read_mgh,
    ".BRIK": _read_afni,
    ".BRIK.gz": _read_afni,
    "": _read_nifti,
}

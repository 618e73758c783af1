"""What a BOLD file says of itself in its first kilobytes."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

import nibabel as nib
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from dnnbrain_app.errors import BadDataError, MissingInputError

_DAMAGE = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(zlib.error, ImageFileError, HeaderDataError, WrapStructError, ExpatError),
)
_SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}


@dataclass(frozen=True, slots=True)
class Header:
    """Size and timing of a time series.

    ``repetition_time`` is in seconds, None where the file does not tell; only GIFTI has ``n_vertices``.
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
        raise MissingInputError(explain_absence(path)) from error
    except _DAMAGE as error:
        reason = f"{type(error).__name__}: {error}"
        raise BadDataError(f"{path}: cannot be read; it is cut off, damaged or of another format ({reason})") from error


def explain_absence(path: Path) -> str:
    """Say that a file is not there: a git-annex file whose content was not fetched is a symbolic link to nowhere."""
    return f"{path}: {'its content is not here; fetch it with datalad get' if path.is_symlink() else 'does not exist'}"


def load_image(path: Path, **options: Any) -> Any:
    """Open an image with nibabel, which reads the data when they are asked for."""
    with opening(path):
        return nib.load(path, **options)


def read_header(paths: Sequence[Path]) -> Header:
    """Read size and timing of a run without reading its data.

    Parameters
    ----------
    paths : sequence of Path
        One CIFTI or NIfTI file, or the GIFTI files of both hemispheres.

    Raises
    ------
    BadDataError
        If a file is damaged, is not a time series, or the hemispheres differ in length.
    MissingInputError
        If a file is absent.
    """
    headers = []
    for path in paths:
        with opening(path):
            header = next(read for ending, read in _READERS.items() if path.name.endswith(ending))(path)
        if header.n_volumes < 2:
            raise BadDataError(f"{path}: {header.n_volumes} volume(s); a time series is needed")
        headers.append(header)
    if len({header.n_volumes for header in headers}) > 1:
        texts = [f"{path} has {header.n_volumes} volumes" for path, header in zip(paths, headers, strict=True)]
        raise BadDataError(" and ".join(texts))
    return headers[0]


def _read_nifti(path: Path) -> Header:
    # not by nibabel.load: with thousands of runs its millisecond each is most of the time that indexing takes
    with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
        block = file.read(540)
    header = _parse_nifti(block)
    shape, unit = header.get_data_shape(), header.get_xyzt_units()[1]
    if len(shape) != 4:
        raise ValueError(f"{len(shape)} dimensions, not 4")
    step = float(header["pixdim"][4]) * _SECONDS.get(unit, 0.0)
    return Header(int(shape[3]), step if step > 0 else None)


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
    seconds = float(step.group(1)) if step else 0.0
    if seconds >= 50:  # the format names no unit: FreeSurfer writes milliseconds, others seconds
        seconds *= 1e-3
    return Header(arrays * sizes.get(1, 1), seconds if seconds > 0 else None, sizes[0])


_READERS = {".gii": _read_gifti, ".dtseries.nii": _read_cifti, "": _read_nifti}

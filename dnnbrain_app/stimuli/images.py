"""Reading one stimulus image, whatever its mode, into 8-bit RGB."""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dnnbrain_app.errors import BadDataError, MissingInputError
from dnnbrain_app.stimuli.stores import read_row, split_store

MAX_PIXELS = 89_478_485  # where Pillow begins to warn of bombs: a quarter of a GiB of RGB
MAX_RATIO = 100  # of the longer to the shorter edge: networks bring the shorter one to some 256 pixels
_GREY = (128, 128, 128, 255)
# Not among them: EPS, which would start an interpreter of PostScript, and headers without a picture (MPEG, HDF5, ...).
_FORMATS = ["JPEG", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "PCX", "PSD", "QOI", "SGI"]
_FORMATS += ["ICO", "TGA"]


def read_image(path: Path) -> Image.Image:
    """Read an image as 8-bit RGB.

    Parameters
    ----------
    path : Path
        A raster image: JPEG, PNG, TIFF, BMP, GIF, WebP, AVIF, JPEG 2000, ...; or a row of a dataset in an HDF5 file
        (see `read_row`), such as ``nsd_stimuli.hdf5/imgBrick/46002``.

    Returns
    -------
    PIL.Image.Image
        Mode RGB, upright by its EXIF orientation. 16-bit grey is scaled to 8 bits; of 16-bit colours the upper 8 bits
        are kept. Transparency is laid over mid-grey (128). CMYK becomes RGB by the simple formula, and colour profiles
        are ignored, as in the pipelines with which networks are trained. Of several frames or pages, the first.

    Raises
    ------
    MissingInputError
        If the file is absent.
    BadDataError
        If it is empty, damaged, not an image, has too many pixels (`MAX_PIXELS`), is too narrow (`MAX_RATIO`), or has
        32-bit or Lab pixels.
    """
    if place := split_store(path):
        pixels = read_row(*place)
        return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels).convert("RGB")
    with opening_image(path), open_image(path) as image:
        check_size(*image.size)
        image.load()
        return make_rgb(image)


def check_image(path: Path, file: IO[bytes]) -> str:
    """Check from its header that a file is an image that can be read; no pixel is decoded.

    Parameters
    ----------
    path : Path
        Its name, for messages.
    file : file object
        The open file, at its beginning.

    Returns
    -------
    str
        What the user should know of how it is read: ``cmyk``, ``profile`` (of colours, other than sRGB), ``pages``;
        or nothing.

    Raises
    ------
    BadDataError
        If it is not.
    """
    with opening_image(path), open_image(file) as image:
        check_size(*image.size)
        if image.mode == "CMYK":
            return "cmyk"
        profile = image.info.get("icc_profile") or b"sRGB"
        if b"sRGB" not in profile and b"s\0R\0G\0B" not in profile:
            return "profile"
        return "pages" if image.format == "TIFF" and getattr(image, "is_animated", False) else ""


def open_image(file: Path | IO[bytes]) -> Image.Image:
    """Open an image of a format that is read here; only the header is looked at."""
    return Image.open(file, formats=list_formats())


@functools.cache
def list_formats() -> tuple[str, ...]:
    """List the formats that are read here, as far as this Pillow was built with them."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def list_suffixes() -> set[str]:
    """List the endings of these formats' names."""
    return {suffix for suffix, name in Image.registered_extensions().items() if name in list_formats()}


def check_size(width: int, height: int) -> None:
    """Refuse an image too large to decode, or to scale."""
    if width * height > MAX_PIXELS:
        raise BadDataError(
            f"{width} x {height} pixels; at most {MAX_PIXELS // 1_000_000} million are read, scale it down"
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise BadDataError(f"{width} x {height} pixels; one edge may be up to {MAX_RATIO} times as long as the other")


@contextmanager
def opening_image(path: Path) -> Iterator[None]:
    """Turn what Pillow raises into our errors, with the path."""
    try:
        yield
    except FileNotFoundError as error:
        hint = (
            "a link whose content is not here; fetch it with 'datalad get'" if path.is_symlink() else "does not exist"
        )
        raise MissingInputError(f"{path}: {hint}") from error
    except BadDataError as error:
        raise BadDataError(f"{path}: {error}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadDataError(
            f"{path}: too many pixels; at most {MAX_PIXELS // 1_000_000} million are read, scale it down"
        ) from error
    except UnidentifiedImageError as error:
        raise BadDataError(f"{path}: not an image (sound, video and vector graphics are not read)") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error) as error:
        raise BadDataError(f"{path}: the image is cut off or damaged ({error})") from error


def make_rgb(image: Image.Image) -> Image.Image:
    """Turn a decoded image upright, and into 8-bit RGB; see `read_image`."""
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # these two are of 16 bits in this mode
        raise BadDataError("32-bit pixels, whose black and white are unknown; store the image with 8 or 16 bits")
    return _to_rgb(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("F", "LAB"):
        raise BadDataError(f"pixels of mode {image.mode} are not read; store the image as RGB with 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, _GREY), over).convert("RGB")
    return image.convert("RGB")

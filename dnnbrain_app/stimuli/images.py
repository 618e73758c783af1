"""Reading one stimulus image, whatever its mode, into 8-bit RGB."""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dnnbrain_app.errors import BadDataError, MissingInputError

logger = logging.getLogger(__name__)

MAX_PIXELS = 100_000_000
_GREY = (128, 128, 128, 255)


def read_image(path: Path) -> Image.Image:
    """Read an image as 8-bit RGB.

    Parameters
    ----------
    path : Path
        Any image file that Pillow reads.

    Returns
    -------
    PIL.Image.Image
        Mode RGB, upright by its EXIF orientation. 16-bit grey is scaled to 8 bits, transparency laid over mid-grey
        (128); of an animation, the first frame.

    Raises
    ------
    MissingInputError
        If the file is absent.
    BadDataError
        If it is empty, damaged, not an image, or has more than 100 million pixels.
    """
    with opening_image(path), Image.open(path) as image:
        check_size(image)
        n_frames = getattr(image, "n_frames", 1)
        if n_frames > 1:
            logger.warning("%s: an animation of %d frames; the first is used", path, n_frames)
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))


def check_image(path: Path, content: bytes) -> None:
    """Check from its header that a file's content is an image of a size that can be read; no pixel is decoded.

    Raises
    ------
    BadDataError
        If it is not.
    """
    with opening_image(path), Image.open(BytesIO(content)) as image:
        check_size(image)


def check_size(image: Image.Image) -> None:
    """Refuse an image too large to decode."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadDataError(f"{width} x {height} pixels; at most {MAX_PIXELS // 1_000_000} million are read")


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
        raise BadDataError(f"{path}: too many pixels to be read safely ({error})") from error
    except UnidentifiedImageError as error:
        raise BadDataError(f"{path}: not an image (sound, video and vector graphics are not read)") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error) as error:
        raise BadDataError(f"{path}: the image is cut off or damaged ({error})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _scale_deep(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, _GREY), over).convert("RGB")
    return image.convert("RGB")


def _scale_deep(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise BadDataError(
            f"pixels from {values.min():g} to {values.max():g} (mode {image.mode}); store the image with 8 or 16 bits"
        )
    return Image.fromarray(np.round(values / 257).astype(np.uint8))

"""From pictures to what a network takes, in two steps: pixels (uint8) for each stimulus, numbers (float32) for a batch.

The pixels travel to the device, where a batch is normalised at once: a quarter of the bytes, and the values are bit by
bit those of the publishers' own transforms, which do the same operations one image at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, functional

from dnnbrain_app.errors import UsageError

Transform = Callable[[Any], Tensor]
Normalize = Callable[[Tensor], Tensor]


def make_transform(
    size: int | tuple[int, int],
    resize: str | int | tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bilinear",
    *,
    scale: float = 255.0,
    clips: bool = False,
) -> tuple[Transform, Normalize]:
    """Make the two steps of preparing stimuli; both can be pickled.

    Parameters
    ----------
    size : int or tuple of int
        Pixels of the square, or rows and columns, that the network takes.
    resize : {'crop', 'squash'}, int or tuple of int
        ``crop``: the shorter side becomes the shorter one of `size`, and the centre is cut out; ``squash``: the whole
        image is made to fit; a number: the shorter side becomes that many pixels before the centre is cut out; two:
        rows and columns before that.
    mean, std : sequence of float
        One number for each colour, or one for all: what is subtracted, and then divided by.
    interpolation : str
        A name of torchvision's, such as ``bilinear`` or ``bicubic``.
    scale : float
        What pixels (0 to 255) are divided by first.
    clips : bool
        Whether stimuli are sequences of images.

    Returns
    -------
    transform : callable
        From an RGB image to uint8 (3, rows, columns), or from a sequence of them to uint8 (3, frames, rows, columns).
    normalize : callable
        From a batch of these, on any device, to float32: (pixels / scale - mean) / std.

    Raises
    ------
    UsageError
        A size below 1, a `resize` that is none, or a mean or standard deviation that cannot be.
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    if isinstance(resize, str) and resize not in ("crop", "squash"):
        raise UsageError(f"resize {resize!r}: should be crop or squash.")
    first = _find_first_size(rows, columns, resize)
    if min(rows, columns, *first) < 1:
        raise UsageError(f"image size {rows} x {columns} (resize {resize}): should be at least 1 pixel.")
    if any(len(values) not in (1, 3) for values in (mean, std)) or min(std) <= 0:
        raise UsageError(
            f"mean {tuple(mean)}, std {tuple(std)}: should be one number for each of three colours, or one for all; "
            "those of std above 0."
        )
    prepare = prepare_clip if clips else prepare_image
    transform = partial(prepare, resize=first, crop=(rows, columns), interpolation=InterpolationMode(interpolation))
    return transform, partial(normalize_batch, mean=tuple(mean), std=tuple(std), scale=scale)


def _find_first_size(rows: int, columns: int, resize: str | int | tuple[int, int]) -> tuple[int, ...]:
    """Find the size before the centre is cut out: of the shorter side, or rows and columns."""
    if isinstance(resize, str):
        return (rows, columns) if resize == "squash" else (min(rows, columns),)
    return resize if isinstance(resize, tuple) else (resize,)


def describe_transform(
    size: int | tuple[int, int],
    resize: str | int | tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bilinear",
    *,
    scale: float = 255.0,
) -> str:
    """Say in words what `make_transform` makes.

    Examples
    --------
    >>> describe_transform(224, 256, (0.5,), (0.5,))
    'resize the shorter side to 256 (bilinear), central 224 x 224 pixels, (value / 255 - 0.5) / 0.5'
    >>> describe_transform((192, 256), "squash", (127,), (128,), "bicubic", scale=1)
    'resize to 192 x 256 (bicubic), (value - 127) / 128'
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    first = _find_first_size(rows, columns, resize)
    side = "the shorter side " * (len(first) == 1)
    crop = "" if first == (rows, columns) else f" central {rows} x {columns} pixels,"
    value = "value" if scale == 1 else f"value / {scale:g}"
    shift, divisor = (
        f"{numbers[0]:g}" if len(numbers) == 1 else f"({', '.join(f'{number:g}' for number in numbers)})"
        for numbers in (mean, std)
    )
    return f"resize {side}to {' x '.join(map(str, first))} ({interpolation}),{crop} ({value} - {shift}) / {divisor}"


def prepare_image(
    image: Image.Image, resize: Sequence[int], crop: Sequence[int], interpolation: InterpolationMode
) -> Tensor:
    """Resize an RGB image (one number: the shorter side), cut the centre out; returns uint8 (3, rows, columns)."""
    resized = functional.resize(image, list(resize), interpolation)
    pixels: Tensor = functional.pil_to_tensor(functional.center_crop(resized, list(crop)))
    return pixels


def prepare_clip(
    frames: Sequence[Image.Image], resize: Sequence[int], crop: Sequence[int], interpolation: InterpolationMode
) -> Tensor:
    """Resize RGB frames and cut their centres out, as torchvision's video networks were trained.

    Returns
    -------
    torch.Tensor
        uint8 (3, frames, rows, columns). Unlike images, frames are resized as tensors and without antialiasing.
    """
    prepared = []
    for frame in frames:
        resized = functional.resize(functional.pil_to_tensor(frame), list(resize), interpolation, antialias=False)
        prepared.append(functional.center_crop(resized, list(crop)))
    return torch.stack(prepared, dim=1)


def normalize_batch(batch: Tensor, mean: Sequence[float], std: Sequence[float], scale: float = 255.0) -> Tensor:
    """Compute (batch / scale - mean) / std in float32 for uint8 (n, colours, ...), on the batch's device."""
    shape = (-1, *[1] * (batch.ndim - 2))
    shift, divisor = (
        torch.tensor(values, dtype=torch.float32, device=batch.device).view(shape) for values in (mean, std)
    )
    return batch.to(torch.float32).div_(scale).sub_(shift).div_(divisor)

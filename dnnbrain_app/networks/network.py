"""A network ready to be looked at, wherever it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def keep(images: Tensor) -> Tensor:
    """Leave a batch as the transform made it."""
    return images


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A network ready to be looked at.

    Parameters
    ----------
    name : str
        As the user gave it.
    model : torch.nn.Module
        In evaluation mode, float32, without gradients, nothing in place.
    transform : callable
        From an RGB image to a tensor (channels, rows, columns), of uint8 where `normalize` does the rest, else float;
        for a network of clips, from a sequence of RGB images to (channels, frames, rows, columns).
    default_layers : tuple of str
        Names or patterns that ``main`` stands for.
    provenance : mapping
        ``Name``, ``Weights``, ``SHA256``, ``License``, ``Transform``, ``Precision``, ...: what a sidecar must say.
    normalize : callable
        From a batch of what `transform` gives, on the model's device, to what the model takes.
    aliases : mapping of str to str
        Friendly names of layers (``conv1_relu``) and the names that they stand for (``features.1``).
    n_frames : int
        Frames of a clip that it looks at; 0 for a network of images.
    differentiable : bool
        Whether gradients reach the input; without them it can be mapped to brains, but not looked into.
    """

    name: str
    model: nn.Module
    transform: Callable[[Any], Tensor]
    default_layers: tuple[str, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    normalize: Callable[[Tensor], Tensor] = keep
    aliases: Mapping[str, str] = field(default_factory=dict)
    n_frames: int = 0
    differentiable: bool = True

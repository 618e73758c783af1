"""Which networks and layers to look at, and on what device."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """Networks, layers, and how their activations are computed."""

    names: tuple[str, ...] = field(
        default=("efficientnet_lite0",),
        metadata={
            "doc": (
                "Network: a torchvision name (alexnet, resnet50:IMAGENET1K_V1), efficientnet_lite0 (packaged "
                "weights), or module:callable. Repeatable."
            )
        },
    )
    layers: tuple[str, ...] = field(
        default=("main",),
        metadata={
            "doc": (
                "Layers: main (a sensible set), all, names as --list-layers prints them, or patterns such as "
                "'blocks.*'."
            )
        },
    )
    weights: Path | None = field(
        default=None,
        metadata={
            "doc": (
                "File of weights (.safetensors, or a .pth state dict). Default: packaged, or found in TORCH_HOME; "
                "nothing is downloaded."
            )
        },
    )
    device: str = field(default="auto", metadata={"doc": "auto, cpu, cuda, cuda:N or mps."})
    batch_size: int = field(default=16, metadata={"doc": "Images in one forward pass."})
    save_activations: bool = field(
        default=False, metadata={"doc": "Also write every layer's activations as .act.h5 (large)."}
    )

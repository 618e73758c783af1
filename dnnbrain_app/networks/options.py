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
                "Network: a torchvision name (alexnet, resnet50:IMAGENET1K_V1, r3d_18), timm/NAME, efficientnet_lite0, "
                "1 or 2 (packaged weights), onnx:FILE, keras:FILE, act:FILE (activations of any origin), or "
                "module:callable. Repeatable."
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
    dnn_mask: Path | None = field(
        default=None,
        metadata={"doc": "File .dmask.csv of the layers, channels, rows and columns to keep (counted from 1)."},
    )
    pooling: tuple[str, ...] = field(
        default=(),
        metadata={
            "doc": (
                "What to keep of each channel's map: max, mean, median, l1, l2, or gridN (means over N x N fields); "
                "for some layers only: LAYER=max. Default: all of it."
            )
        },
    )
    weights: Path | None = field(
        default=None,
        metadata={
            "doc": (
                "File of weights (.safetensors, or a .pth state dict). Default: packaged, or found in --weights-dir or "
                "TORCH_HOME; nothing is downloaded."
            )
        },
    )
    weights_dir: Path | None = field(
        default=None, metadata={"doc": "Folder with files of weights, looked into before TORCH_HOME."}
    )
    device: str = field(default="auto", metadata={"doc": "auto, cpu, cuda, cuda:N or mps."})
    batch_size: int = field(default=16, metadata={"doc": "Images in one forward pass."})
    precision: str = field(
        default="float32",
        metadata={
            "doc": "Numbers of the forward pass; bfloat16 is exact to about 1 %, and faster on hardware made for it.",
            "choices": ("float32", "bfloat16"),
        },
    )
    projection: int = field(
        default=0,
        metadata={
            "doc": (
                "Sparse random projection of wider layers to this many dimensions. Default 0: none while the inner "
                "products of all stimuli fit the memory, else 4096."
            )
        },
    )
    clip_frames: int = field(
        default=16, metadata={"doc": "Frames, evenly spaced, that a network of clips sees of each clip."}
    )
    image_size: int = field(
        default=224, metadata={"doc": "Pixels of the square image for a network that brings no transform."}
    )
    resize: str = field(
        default="crop",
        metadata={
            "doc": "For a network that brings no transform: crop the centre, or squash the whole image.",
            "choices": ("crop", "squash"),
        },
    )
    mean: tuple[float, ...] = field(
        default=(0.485, 0.456, 0.406),
        metadata={
            "doc": "Mean of each colour (0 to 1) that a network without a transform has subtracted.",
            "repeats": True,
        },
    )
    std: tuple[float, ...] = field(
        default=(0.229, 0.224, 0.225),
        metadata={
            "doc": "Standard deviation of each colour that a network without a transform is divided by.",
            "repeats": True,
        },
    )
    n_top: int = field(default=10, metadata={"doc": "Stimuli to tell for each channel as those it likes best."})
    save_activations: bool = field(
        default=False, metadata={"doc": "Also write every layer's activations as .act.h5 (large)."}
    )

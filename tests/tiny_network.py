"""A network of three layers for ``--network tiny_network:build``: the first sees places, the last sees textures."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor, nn

LAYERS = ("early", "middle", "late")
SIZE = 48


class TinyNetwork(nn.Module):
    """Convolutions with fixed random filters, each followed by more pooling than the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.ReLU(), nn.AvgPool2d(4))
        self.middle = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AvgPool2d(3))
        self.late = nn.Sequential(nn.Conv2d(16, 24, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.late(self.middle(self.early(x)))


def look(image: Image.Image) -> Tensor:
    """Reduce an image to SIZE x SIZE pixels around zero."""
    pixels = torch.frombuffer(bytearray(image.resize((SIZE, SIZE)).tobytes()), dtype=torch.uint8)
    return pixels.reshape(SIZE, SIZE, 3).permute(2, 0, 1).float() / 127.5 - 1


def build() -> tuple[nn.Module, object, tuple[str, ...]]:
    """Make the network: the same weights every time."""
    state = torch.random.get_rng_state()
    torch.manual_seed(5)
    model = TinyNetwork()
    torch.random.set_rng_state(state)
    return model, look, LAYERS

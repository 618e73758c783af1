"""Small networks and small images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional

from dnnbrain_app.networks.families import find_top_layers
from dnnbrain_app.networks.sources import Network
from dnnbrain_app.networks.weights import freeze_model
from dnnbrain_app.records import StimulusSet

MakeNetwork = Callable[..., Network]


@pytest.fixture(scope="session", autouse=True)
def single_thread() -> None:
    """Networks this small lose more than they gain by threads, above all on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture
def make_network() -> MakeNetwork:
    """Wrap a module, with a transform to `size` x `size` pixels around zero."""

    def make(model: nn.Module, size: int = 32, layers: tuple[str, ...] | None = None) -> Network:
        def transform(image: Image.Image) -> torch.Tensor:
            return functional.pil_to_tensor(image.resize((size, size))).float() / 127.5 - 1

        return Network("tiny", freeze_model(model), transform, layers or find_top_layers(model), {"Name": "tiny"})

    return make


@pytest.fixture
def write_stimuli(tmp_path: Path) -> Callable[[list[np.ndarray]], StimulusSet]:
    """Write pictures (rows, columns, 3) as a stimulus set."""

    def write(pictures: list[np.ndarray]) -> StimulusSet:
        paths = tuple(tmp_path / f"{i:02d}.png" for i in range(len(pictures)))
        for path, picture in zip(paths, pictures, strict=True):
            Image.fromarray(picture).save(path)
        digests = tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
        return StimulusSet(tuple(path.name for path in paths), paths, digests)

    return write


@pytest.fixture
def stimuli(write_stimuli: Callable[[list[np.ndarray]], StimulusSet], rng: np.random.Generator) -> StimulusSet:
    """Seven images, of which 1, 4 and 5 are the same."""
    pictures = [rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(7)]
    pictures[4] = pictures[5] = pictures[1]
    return write_stimuli(pictures)


@pytest.fixture
def read_image() -> Callable[[Path], Image.Image]:
    return lambda path: Image.open(path).convert("RGB")

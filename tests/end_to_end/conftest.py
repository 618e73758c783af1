"""A miniature dataset in which the truth is known, and the results of the app on it."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

TESTS = Path(__file__).parents[1]
ATLASES = {
    "fsLR": "tpl-fsLR/tpl-fsLR_atlas-demo_den-91k_dseg.dlabel.nii",
    "MNI152NLin2009cAsym": "tpl-MNI152NLin2009cAsym/tpl-MNI152NLin2009cAsym_atlas-demo_res-2_dseg.nii.gz",
    "fsaverage5": "tpl-fsaverage/tpl-fsaverage_hemi-L_atlas-demo_den-10k_dseg.label.gii",
}
PLACES = ((12, 12), (12, 36), (36, 12), (36, 36), (24, 24), (24, 8))
TEXTURES = ((0, 3), (45, 3), (90, 8), (135, 8))  # orientation in degrees, period in pixels


@dataclass(frozen=True)
class Dataset:
    """A simulated dataset, and which columns of a space carry the signal of which region."""

    path: Path
    truth: dict[str, dict[str, np.ndarray]]

    def atlas(self, space: str) -> Path:
        return self.path / "derivatives" / "atlas" / ATLASES[space]

    def options(self, *spaces: str, atlas: bool = True) -> list[str]:
        """The options of a small and quick run."""
        given = ["--network", "tiny_network:build", "--n-folds", "4", "--n-cpus", "1"]
        for space in spaces:
            given += ["--space", space, *(["--atlas", str(self.atlas(space))] if atlas else [])]
        return given


def import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def draw_stimuli() -> dict[str, Image.Image]:
    """Twenty-four patches: four textures at six places."""
    y, x = np.mgrid[:48, :48]
    images = {}
    for number, (angle, period) in enumerate(TEXTURES):
        along = x * np.cos(np.radians(angle)) + y * np.sin(np.radians(angle))
        stripes = np.sign(np.sin(2 * np.pi * along / period + 0.1))
        for place, (row, column) in enumerate(PLACES):
            window = np.exp(-((y - row) ** 2 + (x - column) ** 2) / 72)
            grey = (127.5 + 127 * stripes * window).astype(np.uint8)
            images[f"texture{number}/place{place}.png"] = Image.fromarray(np.stack([grey] * 3, axis=-1))
    return images


def compute_kernels(images: dict[str, Image.Image]) -> dict[str, np.ndarray]:
    """What each region represents: the first layer, the last one, and something that no layer knows."""
    import torch

    tiny = import_file(TESTS / "tiny_network.py")
    model, look, _ = tiny.build()
    x, kernels = torch.stack([look(image) for image in images.values()]), {}
    with torch.inference_mode():
        for layer in tiny.LAYERS:
            x = getattr(model, layer)(x)
            features = x.flatten(1).double().numpy()
            kernels[layer] = features @ features.T
    return {"EARLY": kernels["early"], "LATE": kernels["late"], "NOISE": np.eye(len(images))}


@pytest.fixture(scope="session")
def simulate() -> Callable[..., Dataset]:
    """Write a dataset in the spaces named."""
    module = import_file(TESTS.parent / "demo" / "simulate.py")
    images = draw_stimuli()
    kernels = compute_kernels(images)

    def make(path: Path, *spaces: str, participants: int = 1) -> Dataset:
        design: Any = module.Design(participants=participants, runs=2, snr=3.0)
        return Dataset(path, module.write_dataset(path, images, kernels, spaces, design))

    return make


@pytest.fixture(scope="session")
def dataset(simulate: Callable[..., Dataset], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Two participants in a miniature of fsLR and one of MNI; read only."""
    return simulate(tmp_path_factory.mktemp("data") / "raw", "fsLR", "MNI152NLin2009cAsym", participants=2)


@pytest.fixture
def copied(dataset: Dataset, tmp_path: Path) -> Dataset:
    """A copy of the dataset, to be spoilt."""
    shutil.copytree(dataset.path, tmp_path / "raw")
    return Dataset(tmp_path / "raw", dataset.truth)

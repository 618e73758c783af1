"""Fixtures of every room's tests."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20201112)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the development data; a checkout elsewhere does not have it."""
    folder = Path(os.environ.get("DNNBRAIN_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"development data not found: {folder} (set DNNBRAIN_SHARED)")
    return folder

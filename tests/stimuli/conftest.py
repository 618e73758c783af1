from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Paint = Callable[..., Path]


@pytest.fixture(scope="session")
def paint() -> Paint:
    """Write an image of one colour, 4 x 3 pixels unless told otherwise."""

    def paint(
        path: Path, colour: Any = (10, 200, 30), mode: str = "RGB", size: tuple[int, int] = (4, 3), **options: Any
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, colour).save(path, **options)
        return path

    return paint


@pytest.fixture
def folder(tmp_path: Path, paint: Paint) -> Path:
    """Folder of two stimuli."""
    folder = tmp_path / "study" / "stimuli"
    paint(folder / "faces" / "b.png")
    paint(folder / "a.JPEG")
    return folder

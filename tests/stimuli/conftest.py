from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Paint = Callable[..., Path]
Film = Callable[..., Path]
BLACK, STEP = 10, 10  # picture i of a film is of grey BLACK + STEP * i, which survives compression


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


@pytest.fixture(scope="session")
def film() -> Film:
    """Write a video of flat grey pictures, or of those given."""
    av = pytest.importorskip("av", reason="the extra 'video' is not installed")

    def film(
        path: Path,
        codec: str = "mpeg4",
        pixels: str = "yuv420p",
        *,
        n: int = 20,
        rate: int = 10,
        size: tuple[int, int] = (64, 48),
        times: Sequence[int] = (),
        pictures: Sequence[np.ndarray] = (),
        options: dict[str, str] | None = None,
        prepare: Callable[[Any], None] = lambda _: None,
        **about: Any,
    ) -> Path:
        if codec not in av.codecs_available:
            pytest.skip(f"this PyAV has no encoder {codec}")
        pictures = pictures or [np.full((size[1], size[0], 3), BLACK + STEP * i, np.uint8) for i in range(n)]
        with av.open(str(path), "w", options=options or {}) as container:
            container.metadata.update({"title": "a film"})
            stream = container.add_stream(codec, rate=rate)
            stream.height, stream.width = pictures[0].shape[:2]
            stream.pix_fmt = pixels
            stream.codec_context.gop_size = 12
            stream.codec_context.bit_rate = 8_000_000
            for name, value in about.items():
                setattr(stream.codec_context, name, value)
            prepare(container)
            for number, picture in enumerate(pictures):
                layout = "rgba" if picture.shape[2] == 4 else "rgb24"
                frame = av.VideoFrame.from_ndarray(picture, format=layout)
                if times:
                    frame.pts, frame.time_base = times[number], Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return film

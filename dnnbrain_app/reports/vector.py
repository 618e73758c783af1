"""SVG from matplotlib that takes the colours of the page it stands on, and is the same bytes every time."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Drawn in colours that occur nowhere else, replaced by the page's own (or, in a file of its own, by those on white).
INK, MUTED, LINE, PAPER = "#010203", "#020304", "#030405", "#040506"
_THEME = {
    INK: ("--ink", "#1d2126"),
    MUTED: ("--muted", "#5d6670"),
    LINE: ("--line", "#d9dde1"),
    PAPER: ("--card", "#ffffff"),
}

# Okabe and Ito's colours that stand out on white and on black, the best separated first; markers say it a second time
COLOURS = ("#0f7fc4", "#d9670c", "#0c9d77", "#c766a0", "#7c6fd6", "#b8890b", "#38a3c9", "#8b8f96")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a stimulus may be called $x$
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.labelpad": 6.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
}


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure twice: as part of a page, and as a file.

    Parameters
    ----------
    inline : str
        SVG element in the page's colours.
    file : bytes
        The same on white.
    alt : str
        What it shows, in words.
    """

    inline: str
    file: bytes
    alt: str


@contextmanager
def drawing_style(name: str) -> Iterator[None]:
    """Set the look of the figures, and ids that depend on nothing but the figure's name."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        yield


def finish_drawing(figure: Figure, name: str, alt: str) -> Drawing:
    """Turn a figure into a drawing; call it inside :func:`drawing_style`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"(font: [^\"';]*?)(?:'DejaVu Sans'|DejaVu Sans)[^\";]*", r"\1system-ui, sans-serif", svg)
    prefix = re.sub(r"\W", "-", name)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)  # several figures share the page
    svg = re.sub(r'(href="|url\()#', rf"\1#{prefix}-", svg)
    inline, alone = svg, svg
    for drawn, (variable, on_white) in _THEME.items():
        inline, alone = inline.replace(drawn, f"var({variable})"), alone.replace(drawn, on_white)
    alone = re.sub(r"(<svg[^>]*>)", r'\1<rect width="100%" height="100%" fill="#ffffff"/>', alone, count=1)
    # the page says what it shows and how wide it is
    inline = re.sub(
        r'^<svg ([^>]*?)width="[^"]*" height="[^"]*"|^<svg ([^>]*?)height="[^"]*" ([^>]*?)width="[^"]*"',
        r"<svg \1\2\3",
        inline,
    )
    width = round(72 * 1.2 * figure.get_figwidth())  # no larger than that: text keeps the size of the page's captions
    inline = inline.replace("<svg ", f'<svg aria-hidden="true" style="max-width: {width}px" ', 1)
    return Drawing(inline, b'<?xml version="1.0" encoding="utf-8"?>\n' + alone.encode(), alt)


def label_layers(axes: Axes, layers: tuple[str, ...]) -> None:
    """Name layer i under x = i; where they are too many, every so many and the last."""
    step = max(1, -(-len(layers) // 28))
    shown = [i for i in range(len(layers)) if i % step == 0]
    if shown[-1] != len(layers) - 1 and len(layers) - 1 - shown[-1] >= step / 2:
        shown.append(len(layers) - 1)
    names = [shorten(layers[i], 18) for i in shown]
    upright = max(map(len, names)) * len(names) > 60
    axes.set_xticks(shown, names, rotation=90 if upright else 0)


def shorten(text: str, length: int) -> str:
    """Cut the middle out of a name that is too long."""
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[: length - 1 - half]}…{text[-half:]}"

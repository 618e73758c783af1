"""How lists, numbers and measures are spelled."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

ELEMENTS = {"cifti": "grayordinates", "gifti": "vertices", "nifti": "voxels"}
COMPARISONS = {
    "pearson": "Pearson r",
    "spearman": "Spearman ρ",
    "rho-a": "ρₐ",
    "tau-a": "τₐ",
    "cosine": "cosine",
    "whitened-cosine": "whitened cosine",
    "whitened-pearson": "whitened r",
    "cka": "CKA",
}
DISTANCES = {
    "correlation": "1 − Pearson correlation of their patterns",
    "cosine": "1 − cosine of the angle between their patterns",
    "sqeuclidean": "squared Euclidean distance of their patterns",
    "mahalanobis": "squared Mahalanobis distance of their patterns",
    "crossnobis": "crossnobis: squared Mahalanobis distance of their patterns, cross-validated over runs",
}
Cite = Callable[..., str]  # notes works as cited, and writes them in parentheses


def enumerate_phrases(items: Sequence[str]) -> str:
    """Join as prose does: ``a, b and c``."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else list(items))


def space_thousands(n: int) -> str:
    """Write a number with a thin space every three digits."""
    return f"{n:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def count_things(n: int, noun: str) -> str:
    """Spell a number of things: ``92 stimuli``."""
    plural = noun[:-2] + "i" if noun.endswith("us") else noun + "s"
    return f"{space_thousands(n)} {noun if n == 1 else plural}"


def write_power(value: float) -> str:
    """Spell a number with an exponent where it is large or small: ``1e-5``."""
    return re.sub(
        r"e([+-])0*(\d)",
        lambda found: f"e{found[1].strip('+')}{found[2]}",
        f"{value:.3g}" if 0.001 < value < 1000 else f"{value:.0e}",
    )


def choose_number(noun: str, items: Sequence[str]) -> str:
    """Put a noun into the plural unless there is one item."""
    return noun if len(items) == 1 else noun + "s"

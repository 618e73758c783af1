"""How the methods text spells lists and numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Cite = Callable[..., str]  # notes works as cited, and writes them in parentheses


def enumerate_phrases(items: Sequence[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else list(items))


def count_things(n: int, noun: str) -> str:
    plural = noun[:-2] + "i" if noun.endswith("us") else noun + "s"
    return f"{n:,} {noun if n == 1 else plural}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def write_power(value: float) -> str:
    return re.sub(
        r"e([+-])0*(\d)",
        lambda found: f"e{found[1].strip('+')}{found[2]}",
        f"{value:.3g}" if 0.001 < value < 1000 else f"{value:.0e}",
    )


def choose_number(noun: str, items: Sequence[str]) -> str:
    return noun if len(items) == 1 else noun + "s"

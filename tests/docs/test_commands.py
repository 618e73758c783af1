"""Every command that the documentation shows can be given as it stands."""

import re
import shlex
from pathlib import Path

import pytest

from dnnbrain_app.cli import collect_flags, command
from dnnbrain_app.config import build_config, read_toml

ROOT = Path(__file__).parents[2]
PAGES = sorted(p for p in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")) if "_build" not in p.parts)
SHELL = ("export", "source")  # prepare what the next line needs


def find_blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), flags=re.M | re.S)


def find_commands() -> list:
    """Give each command of each page as (page, words)."""
    found = []
    for page in PAGES:
        for block in find_blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    found.append(pytest.param(words, id=f"{page.relative_to(ROOT)}: {' '.join(words)[:60]}"))
    return found


def check_dnnbrain(words: list[str]) -> None:
    """Go as far as the app does before it looks at a file."""
    given = command.make_context("dnnbrain", list(words)).params
    places = [given[name] for name in ("bids_dir", "output_dir", "analysis_level")]
    if not (given["list_networks"] or given["list_layers"] or given["fetch_weights"]):
        assert None not in places, "the three arguments are needed"
    build_config(*places, collect_flags(given))


def check_make(words: list[str]) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
    unknown = [word for word in words if "=" not in word and word not in targets]
    assert not unknown, f"no such target: {unknown}; there are {targets}"


@pytest.mark.parametrize("words", find_commands())
def test_commands(words):
    program, *rest = words
    if program == "dnnbrain":
        check_dnnbrain(rest)
    elif program == "make":
        check_make(rest)
    else:
        assert program in SHELL, f"no test knows how to check {program!r}"


def test_the_readme_shows_the_two_commands_first():
    first, second = find_blocks(ROOT / "README.md", "bash")[:2]
    assert (first.strip(), second.strip()) == ("make demo", "make test")


def test_the_tutorial_shows_what_make_demo_runs():
    """The recipe's command, with its variables filled in, is one of the tutorial's."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    variables = dict(re.findall(r"^(\w+) [?:]= (.*)$", text, flags=re.M)) | {"BIN": ""}
    recipe = next(line for line in text.splitlines() if "/dnnbrain " in line).strip()
    while "$(" in recipe:
        recipe = re.sub(r"\$\((\w+)\)", lambda name: variables[name[1]], recipe)
    shown = [part.values[0] for part in find_commands()]
    assert shlex.split(recipe.lstrip("/")) in shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_configurations_are_read(page, tmp_path):
    for block in find_blocks(page, "toml"):
        (tmp_path / "config.toml").write_text(block, encoding="utf-8")
        build_config(Path(), Path(), "participant", read_toml(tmp_path / "config.toml"))


def test_the_network_of_ones_own_works(tmp_path, monkeypatch):
    from dnnbrain_app.networks.options import NetworkOptions
    from dnnbrain_app.networks.sources import load_network

    (code,) = find_blocks(ROOT / "docs" / "how-to" / "choose-layers-and-networks.md", "python")
    (tmp_path / "mynetworks.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_network("mynetworks:make_untrained", NetworkOptions()).default_layers


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """Sphinx checks those of `docs`; nothing else checks README's."""
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)", text)
    broken = [t for t in targets if ":" not in t and not (page.parent / t.partition("#")[0]).exists()]
    assert not broken

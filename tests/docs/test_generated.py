"""The reference pages in the repository are those that the code would give."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.generate()


def test_the_pages_are_up_to_date(pages):
    stale = [
        name
        for name, content in pages.items()
        if not (DOCS / "reference" / name).is_file()
        or (DOCS / "reference" / name).read_text(encoding="utf-8") != content
    ]
    assert not stale, f"run `make docs` (or `python docs/generate.py`): {', '.join(stale)}"


def test_no_page_is_left_over(pages):
    assert {path.name for path in (DOCS / "reference").glob("*.md")} == set(pages)


def test_the_pages_name_everything(pages):
    from dnnbrain_app.cli import FLAGS
    from dnnbrain_app.config import SECTIONS

    for flag in FLAGS:
        assert all(f"`{name}`" in pages["command-line.md"] for name in flag.names)
    for section, options in SECTIONS.items():
        table = pages["configuration.md"].partition(f"\n## {section}\n")[2].partition("\n## ")[0]
        assert all(f"| `{key}` |" in table for key in options.__slots__)

"""Fixtures of every room's tests."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).parent


@dataclass(frozen=True)
class Outcome:
    """How a call of the app ended."""

    code: int
    out: str
    err: str


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


@pytest.fixture(scope="session")
def run_dnnbrain() -> Callable[..., Outcome]:
    """Call the command line in this process, which leaves no trace of the call; ``tiny_network`` can be imported."""
    from dnnbrain_app import cli

    def run(*args: object) -> Outcome:
        out, err, environment, path = io.StringIO(), io.StringIO(), dict(os.environ), list(sys.path)
        sys.path.insert(0, str(TESTS))
        code: object = "main returned"
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                cli.main([str(arg) for arg in args])
        except SystemExit as stop:
            code = stop.code
        finally:
            sys.path[:] = path
            os.environ.clear()
            os.environ.update(environment)
            logging.captureWarnings(False)
            logging.getLogger("dnnbrain_app").handlers.clear()
            logging.getLogger("dnnbrain_app").setLevel(logging.NOTSET)
        assert isinstance(code, int), code
        return Outcome(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def start_dnnbrain() -> Callable[..., subprocess.Popen[str]]:
    """Start the command line, or Python code, in a process of its own."""

    def start(*args: object, code: str = "", cwd: Path | None = None) -> subprocess.Popen[str]:
        program = ["-c", code] if code else ["-m", "dnnbrain_app"]
        paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
        return subprocess.Popen(
            [sys.executable, *program, *map(str, args)],
            env={**os.environ, "PYTHONPATH": paths},
            cwd=cwd,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return start

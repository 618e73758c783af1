"""Every way the app can fail, with the exit code a script sees.

::

    DnnbrainError                          1   a unit of work failed
    ├── UsageError                         2   the command line or the configuration is wrong
    │   └── UnknownNameError               2   a network, layer, analysis... that does not exist
    ├── ValidationError                   16   BIDS validation was asked for and failed
    ├── EmptySelectionError               18   the filters select nothing
    ├── BadDataError                      65   a file is there, but what it says cannot be right
    ├── MissingInputError                 66   a file or folder that must be there is not
    ├── CannotWriteError                  73   the output or work folder cannot be written
    ├── InputOutputError                  74   reading or writing broke half-way
    └── TemporaryError                    75   try again: a lock is held, a resource is busy

A message names the thing, its value and what would be right. The door (``cli.py``) is the only place that catches
these; 130 (interrupted) belongs to it as well.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DnnbrainError(Exception):
    """Something the user can act on; its text is shown as it is, without a traceback."""

    exit_code = 1


class UsageError(DnnbrainError):
    """The command line, or the configuration file, asks for something that cannot be."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name (network, layer, analysis, ...) that does not exist; the nearest ones are suggested."""

    def __init__(self, kind: str, name: str, valid: Iterable[str], *, hint: str = "") -> None:
        text = f"unknown {kind} {name!r}; {suggest(name, valid)}"
        super().__init__(f"{text} {hint}".rstrip())


class ValidationError(DnnbrainError):
    """BIDS validation was asked for and the dataset did not pass."""

    exit_code = 16


class EmptySelectionError(DnnbrainError):
    """The filters select no data."""

    exit_code = 18


class BadDataError(DnnbrainError):
    """An input exists but contradicts itself, another input, or its format."""

    exit_code = 65


class MissingInputError(DnnbrainError):
    """An input that must exist does not."""

    exit_code = 66


class CannotWriteError(DnnbrainError):
    """The output or work folder cannot be written."""

    exit_code = 73


class InputOutputError(DnnbrainError):
    """Reading or writing failed half-way."""

    exit_code = 74


class TemporaryError(DnnbrainError):
    """A resource is held by somebody else; the same command may work later."""

    exit_code = 75


def suggest(name: str, valid: Iterable[str], *, limit: int = 10) -> str:
    """Say which of the valid names is nearest to a wrong one, and which there are.

    Examples
    --------
    >>> suggest("alexnte", ["alexnet", "vgg16"])
    "did you mean 'alexnet'? Valid: alexnet, vgg16."
    >>> suggest("x", [])
    'there are none.'
    """
    valid = list(valid)
    if not valid:
        return "there are none."
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)  # 01 and O1 share one letter of two
    listed = ", ".join(valid[:limit]) + (f", ... ({len(valid)} in all)" if len(valid) > limit else "")
    return (f"did you mean {near[0]!r}? " if near else "") + f"Valid: {listed}."

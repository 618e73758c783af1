"""The official BIDS validator, when the user asks for it."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

from dnnbrain_app.errors import MissingInputError, ValidationError

logger = logging.getLogger(__name__)
PROGRAM = "bids-validator-deno"


def validate_dataset(bids_dir: Path) -> None:
    """Run the validator on a raw dataset; its warnings are not errors.

    Raises
    ------
    MissingInputError
        The validator is not installed.
    ValidationError
        It found errors.
    """
    program = shutil.which(PROGRAM) or shutil.which(PROGRAM, path=str(Path(sys.executable).parent))
    if program is None:
        raise MissingInputError(f"--validate needs {PROGRAM}, which is not installed; pip install {PROGRAM}")
    command = [program, str(bids_dir), "--ignoreWarnings"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise ValidationError(f"{bids_dir} does not pass {PROGRAM}:\n{(done.stdout + done.stderr).strip()}")
    logger.info("%s passes %s", bids_dir, PROGRAM)

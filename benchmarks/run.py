"""Run every benchmark and write docs/benchmarks.md: ours beside the tool a user would pick instead.

    python benchmarks/run.py [NAME...]

Times depend on the machine and on what else it does; read the ratios. Each comparison alternates the tools in one
process and tells medians.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
BENCHMARKS = {
    "encoding": "Ridge encoding, a penalty for each voxel",
    "responses": "Single-trial responses (LSS)",
    "rsa": "Dissimilarity matrices and their comparison",
    "extraction": "Activations, from files to features and Grams",
}
PACKAGES = ("numpy", "scipy", "torch", "nilearn", "scikit-learn", "himalaya", "rsatoolbox")


def main(names: list[str]) -> None:
    """Run the named benchmarks, or all; the page is written when all have run."""
    sections = []
    for name in names or BENCHMARKS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        command = [sys.executable, str(HERE / f"{name}.py")]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        print(done.stdout, flush=True)
        sections.append(f"## {BENCHMARKS[name]}\n\n`python benchmarks/{name}.py`\n\n{done.stdout.strip()}\n")
    if names:
        return
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, {versions}"
    head = f"# Benchmarks\n\nWritten by `make bench` on {date.today():%Y-%m-%d}. {machine}.\n"
    PAGE.write_text("\n".join([head, (__doc__ or "").split("\n\n")[2].strip() + "\n", *sections]), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

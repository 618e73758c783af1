from __future__ import annotations

import ctypes
import platform
import resource
from pathlib import Path

import pytest
import torch

from dnnbrain_app.networks.allocation import keep_freed_memory

N_BYTES = 2**26
PAGE = resource.getpagesize()


def count_faults(n_times: int) -> int:
    """Pages that the system had to find while 64 MB were filled and freed so many times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n_times):
        torch.ones(N_BYTES // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def measure_resident() -> int:
    return PAGE * int(Path("/proc/self/statm").read_text().split()[1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such settings")
def test_freed_memory_is_used_again_and_given_back_at_the_end():
    with keep_freed_memory():
        assert count_faults(20) < 4 * N_BYTES // PAGE  # once, or twice
        kept = measure_resident()
    assert kept - measure_resident() > N_BYTES // 2


def test_other_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    with keep_freed_memory():
        assert torch.ones(3).sum() == 3

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest

from dnnbrain_app.derivatives.files import PART_PREFIX
from dnnbrain_app.derivatives.locks import hold_lock
from dnnbrain_app.errors import CannotWriteError, TemporaryError

HOLD = """
import sys, time
from pathlib import Path
from dnnbrain_app.derivatives.locks import hold_lock
with hold_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def lock(tmp_path):
    return tmp_path / "sub-01" / "log" / "sub-01_task-x_space-y.lock"


@pytest.fixture
def holder(lock):
    code = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(code, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_held_unit_is_refused(lock, holder):
    with (
        pytest.raises(TemporaryError, match="sub-01_task-x_space-y is being computed by another process"),
        hold_lock(lock),
    ):
        pytest.fail("two hold the lock")


def test_units_do_not_block_each_other(lock, holder):
    with hold_lock(lock.with_name("sub-01_task-z.lock")):
        assert holder.poll() is None


def test_a_dead_holder_blocks_nobody(lock, holder):
    holder.kill()
    holder.wait()
    with hold_lock(lock):
        pass


def test_the_lock_ends_with_its_block(lock):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), hold_lock(lock):
            raise ZeroDivisionError


def test_leftovers_of_killed_processes_go(lock):
    func = lock.parents[1] / "func"
    func.mkdir(parents=True)
    old, new, mine = (func / name for name in (f"{PART_PREFIX}1-a", f"{PART_PREFIX}2-a", "a"))
    for path in (old, new, mine):
        path.write_text("")
    day_before_yesterday = time.time() - 2 * 86400
    for path in (old, mine):
        os.utime(path, (day_before_yesterday, day_before_yesterday))
    with hold_lock(lock):
        assert sorted(func.iterdir()) == sorted([new, mine])


def test_no_place_for_a_lock(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWriteError, match="file"), hold_lock(tmp_path / "file" / "log" / "unit.lock"):
        pytest.fail("there is no lock")


def test_file_systems_without_locks_warn(lock, monkeypatch, caplog):
    def refuse(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with hold_lock(lock):
        assert "no locks" in caplog.text

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dnnbrain_app.derivatives import locks
from dnnbrain_app.derivatives.files import PART_PREFIX
from dnnbrain_app.derivatives.locks import hold_entry_lock, hold_lock
from dnnbrain_app.errors import CannotWriteError, InputOutputError, TemporaryError

HOLD = """
import sys, time
from pathlib import Path
from dnnbrain_app.derivatives.locks import hold_entry_lock, hold_lock
with {lock}(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep({seconds})
    print("done", flush=True)
"""


@pytest.fixture
def lock(tmp_path):
    return tmp_path / "sub-01" / "log" / "sub-01_task-x_space-y.lock"


@pytest.fixture
def start(lock):
    """Hold a lock in another process."""
    started = []

    def begin(kind: str = "hold_lock", seconds: float = 60.0) -> subprocess.Popen[str]:
        code = [sys.executable, "-c", HOLD.format(lock=kind, seconds=seconds), str(lock)]
        started.append(subprocess.Popen(code, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], text=True))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def holder(start):
    return start()


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


@pytest.mark.parametrize("hold", [hold_lock, hold_entry_lock])
def test_the_lock_ends_with_its_block(lock, hold):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), hold(lock):
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


@pytest.mark.parametrize("hold", [hold_lock, hold_entry_lock])
def test_no_place_for_a_lock(tmp_path, hold):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWriteError, match="file"), hold(tmp_path / "file" / "log" / "unit.lock"):
        pytest.fail("there is no lock")


@pytest.mark.parametrize("hold", [hold_lock, hold_entry_lock])
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_systems_without_locks_warn(lock, monkeypatch, caplog, hold, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with hold(lock):
        assert caplog.text.count("no locks") == 1


@pytest.mark.parametrize("hold", [hold_lock, hold_entry_lock])
def test_a_failing_lock_is_explained(lock, monkeypatch, hold):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(locks.fcntl, "flock", fail)
    with pytest.raises(InputOutputError, match="Input/output error"), hold(lock):
        pytest.fail("there is no lock")


def test_who_needs_an_entry_waits_for_it_and_says_so_once(lock, start):
    holder, said = start("hold_entry_lock", seconds=1.2), []
    with hold_entry_lock(lock, lambda: said.append(holder.poll())):
        assert holder.stdout.readline() == "done\n"
    assert said == [None]


def test_who_waits_for_a_process_that_is_killed_goes_on(lock, start):
    holder = start("hold_entry_lock")
    killer = threading.Timer(0.3, holder.kill)
    killer.start()
    with hold_entry_lock(lock):
        assert holder.wait() < 0


def test_a_free_entry_is_not_waited_for(lock):
    with hold_entry_lock(lock, lambda: pytest.fail("there is nobody")):
        assert lock.exists()


def test_threads_take_turns(lock, monkeypatch):
    monkeypatch.setattr(locks, "_POLL", 0.001)
    inside, seen = [], []

    def work() -> None:
        with hold_entry_lock(lock):
            inside.append(1)
            time.sleep(0.01)
            seen.append(len(inside))
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 8


def test_waiting_can_be_interrupted(lock, holder, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(locks.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt), hold_entry_lock(lock):
        pytest.fail("two hold the lock")


def test_try_lock_tells_what_it_knows(tmp_path):
    """A folder can be locked as well."""
    first, second = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    assert locks.try_lock(first) is True
    assert locks.try_lock(second) is False
    os.close(first)
    assert locks.try_lock(second) is True
    os.close(second)

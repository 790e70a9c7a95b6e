"""amcl_fast.runs.lock: one process at a time, and none after it died."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from amcl_fast.runs import lock
from amcl_fast.runs.directory import NewFolder
from amcl_fast.runs.lock import RunInUseError, RunLock, locked

HOLD = """
import sys
from pathlib import Path
from amcl_fast.runs.lock import RunLock
with RunLock() as lock:
    lock.acquire(Path(sys.argv[1]))
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_refused_until_the_first_is_killed(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(RunInUseError, match=rf"is in use: process {holder.pid} on "), RunLock() as own:
            own.acquire(tmp_path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with RunLock() as own:
        own.acquire(tmp_path)


def test_the_lock_ends_with_the_block(tmp_path):
    for _ in range(2):
        with RunLock() as first:
            first.acquire(tmp_path)
            with pytest.raises(RunInUseError, match=f"process {os.getpid()} on"), RunLock() as second:
                second.acquire(tmp_path)


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    with pytest.warns(UserWarning, match="cannot be locked.*Function not implemented"), RunLock() as own:
        own.acquire(tmp_path)


def test_a_lock_file_that_is_taken_away_in_between_locks_nothing(tmp_path, monkeypatch):
    """A run that does not start removes it while the next one has opened it and not yet locked it."""
    real, left = lock.fcntl.flock, [tmp_path / ".lock"] * 2

    def flock(*arguments):
        if left:
            left.pop().unlink()
        real(*arguments)

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with RunLock() as first:
        first.acquire(tmp_path)
        assert not left
        with pytest.raises(RunInUseError), RunLock() as second:
            second.acquire(tmp_path)


def test_a_folder_that_is_taken_away_in_between_is_made_again(tmp_path, monkeypatch):
    real, left = lock.fcntl.flock, [tmp_path / "run"]

    def flock(*arguments):
        real(*arguments)
        for folder in left[:]:
            (folder / ".lock").unlink()
            folder.rmdir()
            left.clear()

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with RunLock() as own:
        assert NewFolder(tmp_path / "run", "demo", own).reserve() == tmp_path / "run"
        with pytest.raises(RunInUseError), RunLock() as second:
            second.acquire(tmp_path / "run")


def test_a_file_system_without_lasting_numbers_of_files_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr("amcl_fast.runs.lock._is_file", lambda path, descriptor: False)
    with RunLock() as lock:
        with pytest.warns(UserWarning, match="cannot be locked for certain: start no second run in it"):
            lock.acquire(tmp_path)
        assert lock.run_dir == tmp_path


def test_whoever_waits_begins_when_the_other_has_ended(tmp_path):
    began, order = threading.Event(), []

    def other():
        began.set()
        with locked(tmp_path / ".lock"):
            order.append("second")

    with locked(tmp_path / ".lock"):
        thread = threading.Thread(target=other)
        thread.start()
        assert began.wait(10)
        thread.join(0.2)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]

"""amcl_fast.data.processes.pool: jobs in order, whatever becomes of the processes."""

import os
import sys
import time

import pytest

from amcl_fast.data.processes import worker
from amcl_fast.data.processes.pool import Pool

_JOBS = """
import os, sys, time
from amcl_fast.data.processes.serving import serve_jobs

def answer(job):
    what, _, rest = job.decode().partition(" ")
    if what == "sleep":
        time.sleep(float(rest))
    elif what == "die":
        os._exit(3)
    elif what == "once":  # dies where the file is not there yet
        try:
            os.close(os.open(rest, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return b"again"
        os._exit(3)
    elif what == "open":
        open(rest)
    elif what == "value":
        raise ValueError(rest)
    elif what == "bug":
        return {{}}[rest]
    elif what == "where":
        return __import__(rest).__file__.encode()
    elif what == "long":
        return bytes(int(rest))
    return f"{{rest}} torch" if "torch" in sys.modules else f"{{os.getpid()}} {{rest}}".encode()

serve_jobs(answer)
"""


@pytest.fixture(autouse=True)
def jobs(monkeypatch):
    head, end = worker._BOOTSTRAP.split("from importlib")
    assert "main" in end
    monkeypatch.setattr(worker, "_BOOTSTRAP", head + _JOBS)


def test_answers_come_in_the_order_of_the_jobs_from_several_processes():
    with Pool("test", processes=3) as pool:
        answers = [answer.split() for answer in pool.map(f"sleep {0.01 * (n % 3)}".encode() for n in range(40))]
        assert [float(seconds) for _, seconds in answers] == [0.01 * (n % 3) for n in range(40)]
        assert len({pid for pid, _ in answers}) == 3
        assert list(pool.map([])) == []
        # Longer than a pipe holds, both ways.
        assert [len(answer) for answer in pool.map([b"long 3000000" + b" " * 3_000_000] * 5)] == [3_000_000] * 5


def test_jobs_are_made_when_they_are_needed():
    made = []

    def jobs():
        for number in range(100):
            made.append(number)
            yield b"echo"

    with Pool("test", processes=1) as pool:
        next(pool.map(jobs()))
        assert len(made) <= 4


def test_what_a_job_raises_is_raised_here(tmp_path):
    missing = str(tmp_path / "missing ü")
    with Pool("test", processes=1) as pool:
        with pytest.raises(FileNotFoundError) as raised:
            list(pool.map([f"open {missing}".encode()]))
        assert raised.value.filename == missing
        with pytest.raises(ValueError, match=r"^of the job$"):
            list(pool.map([b"value of the job"]))
        with pytest.raises(RuntimeError, match="KeyError: 'here'"):
            list(pool.map([b"bug here"]))
        assert len(list(pool.map([b"echo"] * 3))) == 3


def test_a_script_s_folder_hides_no_module_of_python_s(tmp_path, monkeypatch):
    names = ("types", "operator", "functools", "warnings", "fractions")
    for name in names:
        (tmp_path / f"{name}.py").write_text("raise ImportError('not this one')")
    (tmp_path / "own.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with Pool("test", processes=1) as pool:
        found = [path.decode() for path in pool.map(f"where {name}".encode() for name in (*names, "own"))]
    assert not [path for path in found[:-1] if path.startswith(str(tmp_path))]
    assert found[-1] == str(tmp_path / "own.py")


def test_a_process_that_dies_is_started_again_once(tmp_path):
    with Pool("test", processes=2) as pool:
        assert list(pool.map([f"once {tmp_path / 'mark'}".encode()])) == [b"again"]
        with pytest.raises(OSError, match=r"a helper process \(test\) does not stay: it ended with exit code 3"):
            list(pool.map([b"die"]))


def test_a_pool_ends_at_once_with_its_processes():
    started = time.monotonic()
    with Pool("test", processes=2) as pool:
        first = pool.map([b"echo", *[b"sleep 600"] * 9])
        pids = [int(next(first).split()[0])]
        pids += [process._process.pid for process in pool._all]
    assert time.monotonic() - started < 60
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with pytest.raises(OSError, match="closed"):
        pool._run(b"echo")

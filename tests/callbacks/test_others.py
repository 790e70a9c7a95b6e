"""Which of the processes that Lightning has started was killed is told, and nothing of those that end by themselves."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from amcl_fast.callbacks import others
from tests.helpers import forks
from tests.helpers.command_line import environment


@pytest.mark.parametrize(("signum", "told"), [(signal.SIGKILL, "process 1 (pid {}) was ended by SIGKILL"), (None, "")])
def test_a_killed_process_is_named(monkeypatch, capfd, signum, told):
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    threads = []
    monkeypatch.setattr(others.threading.Thread, "start", lambda thread: threads.append(thread))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv(others.FIRST, "")
    launcher = SimpleNamespace(procs=[process], _call_children_scripts=lambda: None)
    others.Others().watch(SimpleNamespace(strategy=SimpleNamespace(launcher=launcher)))
    assert not threads
    launcher._call_children_scripts()
    if signum is None:
        process.stdin.close()
    else:
        os.kill(process.pid, signum)
    (thread,) = threads
    thread.run()  # until it has ended
    said = capfd.readouterr().err
    assert told.format(process.pid) in said and bool(said) == bool(told)
    assert process.wait() == (-signum if signum else 0)


_OUTLIVES = """
import os, sys, threading, time
from types import SimpleNamespace
import lightning
from amcl_fast.callbacks import others

others._SECONDS = 0.1
first = os.fork()
if not first:
    time.sleep(600)
os.environ |= {"LOCAL_RANK": "1", others.FIRST: str(first)}
callback = others.Others()
callback.watch(SimpleNamespace(strategy=SimpleNamespace(launcher=None)))
if sys.argv[1] == "over":
    callback.on_exception(None, None, KeyError())
os.kill(first, 9)
os.waitpid(first, 0)
threads = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
for thread in threads:
    thread.join()
print("went on", len(threads) > 0 or callback._over.is_set())
"""


@pytest.mark.parametrize(("when", "code", "out"), [("before", 1, ""), ("over", 0, "went on True\n")])
def test_a_process_ends_with_the_one_that_has_started_it(when, code, out, tmp_path):
    done = forks.run([sys.executable, "-c", _OUTLIVES, when], env=environment(tmp_path), timeout=100)
    assert (done.returncode, done.stdout) == (code, out), done.stderr
    assert done.stderr.count("process 1 ends with process 0 (pid ") == code

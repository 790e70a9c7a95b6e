"""Which of the processes that Lightning has started was killed is told, and nothing of those that end by themselves."""

import os
import signal
import subprocess
from types import SimpleNamespace

import pytest

from amcl_fast.callbacks import others


@pytest.mark.parametrize(("signum", "told"), [(signal.SIGKILL, "process 1 (pid {}) was ended by SIGKILL"), (None, "")])
def test_a_killed_process_is_named(monkeypatch, capfd, signum, told):
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    threads = []
    monkeypatch.setattr(others.threading.Thread, "start", lambda thread: threads.append(thread))
    launcher = SimpleNamespace(procs=[process])
    others.Others().setup(SimpleNamespace(strategy=SimpleNamespace(launcher=launcher)), None, "fit")
    if signum is None:
        process.stdin.close()
    else:
        os.kill(process.pid, signum)
    (thread,) = threads
    thread.run()  # until it has ended
    said = capfd.readouterr().err
    assert told.format(process.pid) in said and bool(said) == bool(told)
    assert process.wait() == (-signum if signum else 0)

"""Run a command on a machine that is held up at random, as a shared one is: no test may fail by it.

    python -m tests.helpers.stalls python -m pytest -n 2

The command and all that it has started stand still for up to five seconds, after up to six in which they run.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

_RUNS, _STANDS = 6.0, 5.0


def _descendants(pid):
    """Those that are neither stopped nor dead."""
    children = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has ended
            continue
        children.setdefault(int(parent), []).append((int(path.parent.name), state))
    found, parents = [], [pid]
    while parents:
        for child, state in children.get(parents.pop(), []):
            parents.append(child)
            if state not in "TZ":
                found.append(child)
    return found


def _send(pids, signum):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)


def main(command):
    """Its exit code."""
    process, number = subprocess.Popen(command), 0
    while process.poll() is None:
        time.sleep(random.uniform(0, _RUNS))
        stopped = []
        try:
            for _ in range(2):  # what was started meanwhile
                some = _descendants(process.pid)
                stopped += some
                _send(some, signal.SIGSTOP)
            time.sleep(random.uniform(0, _STANDS))
        finally:  # a Ctrl-C leaves nothing behind that stands still
            _send(stopped, signal.SIGCONT)
        number += 1
    print(f"held up {number} times")
    return process.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

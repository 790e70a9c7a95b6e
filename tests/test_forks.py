"""What the tests' own settings promise to those that fork, and `forks` to those that start commands."""

import gc
import os
import subprocess
import sys
import weakref

import pytest

from tests.helpers import forks
from tests.helpers.command_line import environment


class Cycle:
    """Is found by the collector alone."""

    def __init__(self):
        self.itself = self


def test_a_forked_child_collects_nothing_of_its_parent():
    collecting = gc.isenabled()
    gc.disable()
    try:
        cycle = weakref.ref(Cycle())
        child = os.fork()
        if not child:
            gc.collect()
            os._exit(0 if cycle() is not None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        # And the parent goes on collecting it.
        gc.collect()
        assert cycle() is None
    finally:
        if collecting:
            gc.enable()


@pytest.mark.parametrize(
    "code",
    [
        "print(sys.argv, __name__, os.getcwd(), os.environ['WORD'])",
        "atexit.register(print, 'at the end'); print('before'); sys.exit('told')",
        "sys.exit(7)",
        "1 / 0",
        "raise KeyboardInterrupt",
        "os.kill(os.getpid(), signal.SIGKILL)",
        "os.killpg(os.getpid(), signal.SIGINT); time.sleep(9)",
    ],
)
def test_a_fork_for_a_command_is_as_the_command(code, tmp_path):
    code = f"import atexit, os, signal, sys, time\n{code}\n"
    told = []
    for start in (subprocess.Popen, forks.Popen):
        process = start(
            [sys.executable, "-c", code, "a", "b"], cwd=tmp_path, env=environment(tmp_path) | {"WORD": "x"}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        out, err = process.communicate(timeout=60)
        told.append((out, err.splitlines()[-1:], process.returncode))
    assert told[0] == told[1]


def test_a_fork_for_a_command_knows_its_rank_and_its_module(tmp_path):
    (tmp_path / "told.py").write_text(
        "import sys\nfrom lightning.pytorch.utilities import rank_zero_only\n"
        "print(sys.argv, __spec__.name, __file__, rank_zero_only.rank)\n"
    )
    of_rank = environment(tmp_path) | {"RANK": "3"}
    done = forks.run([sys.executable, "-m", "told", "--option"], cwd=tmp_path, env=of_rank)
    path = str(tmp_path / "told.py")
    assert done.stdout == f"{[path, '--option']} told {path} 3\n", done.stderr


def test_a_command_that_is_no_fork_is_refused(tmp_path):
    for command, changed in ((["ls", "-l", "."], {}), ([sys.executable, "-c", ""], {"OMP_NUM_THREADS": "7"})):
        with pytest.raises(ValueError, match="got"):
            forks.run(command, env=environment(tmp_path) | changed)

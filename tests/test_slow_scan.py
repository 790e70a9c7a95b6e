"""Images that the first of several processes takes long to find, or does not find: the others wait, or end with it."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import forks
from tests.helpers.command_line import NT_XENT, environment, image_folder

pytestmark = pytest.mark.slow

# The first process takes longer to find the images than the processes of a group wait for each other, or to measure.
_SLOW = """
import os, sys, time
from datetime import timedelta
import lightning.pytorch.strategies.ddp as ddp
import torch.distributed as dist
import amcl_fast.callbacks.knn as knn
from amcl_fast.cli import main
from amcl_fast.data import ContrastiveDataModule
usual, (*others, timeout, start) = ContrastiveDataModule._find, ddp.DDPStrategy.__init__.__defaults__
assert isinstance(timeout, timedelta)
ddp.DDPStrategy.__init__.__defaults__ = (*others, timedelta(seconds=15), start)
def slow(self):
    if os.environ["SLURM_PROCID"] == "0":
        time.sleep({seconds})
        {then}
    return usual(self)
def measuring(*_, **__):
    if os.environ["SLURM_PROCID"] == "0":
        print("measuring", flush=True)
        time.sleep(99)
    dist.barrier()
ContrastiveDataModule._find, knn.knn_accuracy = slow, measuring
sys.exit(main())
"""


@pytest.fixture
def processes(tmp_path):
    """Starts two processes of a run as srun starts them; of what the first does in place of looking for images."""
    image_folder(tmp_path / "images", 12, 4, ".png")
    settings = f"{NT_XENT}trainer: {{max_steps: 1, accelerator: cpu, devices: 2}}\nknn: {{every_n_epochs: 0}}\n"
    (tmp_path / "settings.yaml").write_text(settings)
    started = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    step = {
        "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODELIST": "127.0.0.1", "SLURM_NODEID": "0",
        "MASTER_PORT": str(port),
    }  # fmt: skip

    def start(*more, seconds=0, then=""):
        code = _SLOW.format(seconds=seconds, then=then)
        options = ["pretrain", "--config", "settings.yaml", "--data", "images", "--run_dir", "run", *more]
        for rank in "01":
            started.append(
                forks.Popen(
                    [sys.executable, "-c", code, *options], cwd=tmp_path, text=True,
                    env=environment(tmp_path) | step | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank},
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                )
            )  # fmt: skip
        return started

    start.port = port
    yield start
    for process in started:
        process.kill()
        process.communicate()


def ended(processes):
    """(stdout, stderr, exit code) of each."""
    return [(*process.communicate(timeout=100), process.returncode) for process in processes]


def test_the_others_wait_as_long_as_it_takes(processes):
    (told, said, code), (silent, others, other) = ended(processes(seconds=18))
    assert (code, other, silent) == (0, 0, ""), said + others
    assert "run directory" in told


def await_both(port):
    """Until both processes have met at the first one's store, and a little longer."""
    until = time.monotonic() + 90
    while sum(row.split()[2].endswith(f":{port:04X}") and row.split()[3] == "01" for row in connections()) < 2:
        assert time.monotonic() < until
        time.sleep(0.1)
    time.sleep(1)


def connections():
    """Rows of the system's tables: number, local and remote address, state, …"""
    return [row for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]


def test_they_fail_with_it(processes, tmp_path):
    (_, said, code), other = ended(processes(then="raise ValueError('images is gone')"))
    assert (said, code) == ("amcl-fast pretrain: error: images is gone\n", 2)
    assert other == ("", "", 1)
    assert not (tmp_path / "run").exists()


def test_they_end_if_it_is_killed(processes):
    first, other = processes(seconds=99)
    await_both(processes.port)
    first.kill()
    told, said = other.communicate(timeout=100)
    assert "amcl-fast pretrain: error: process 1 has lost process 0" in said and "which has ended" in said
    assert (told, other.returncode) == ("", 2) and "Traceback" not in said


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_ctrl_c_ends_those_that_wait(processes, order):
    """Also if it has ended the one when it reaches the other."""
    started = processes(seconds=99)
    await_both(processes.port)
    for rank in order:
        started[rank].send_signal(signal.SIGINT)
        time.sleep(0.5)
    stopped(started)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_ctrl_c_in_the_first_measuring(processes, order):
    started = processes("--knn.every_n_epochs", "1")
    while started[0].stdout.readline() != "measuring\n":
        assert started[0].poll() is None
    time.sleep(1)
    for rank in order:
        started[rank].send_signal(signal.SIGINT)
        time.sleep(0.5)
    stopped(started)


def stopped(started):
    """See that both have ended alike, of which one tells."""
    (told, said, code), (silent, others, other) = ended(started)
    assert (code, other, silent) == (130, 130, ""), said + others
    assert "Traceback" not in said + others
    assert told.endswith("stopped before anything was saved; go on with: amcl-fast pretrain --resume run\n")

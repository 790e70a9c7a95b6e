"""The scripts for ImageNet run, on two machines of one process each, are stopped, and go on when they are run again."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import NT_XENT, environment, image_folder

from amcl_fast.report import read_run

FOLDER = Path(__file__).parents[2] / "examples"
# In place of what the recipe has for GPUs.
SETTINGS = f"""{NT_XENT}
    compile: false
trainer: {{accelerator: cpu, precision: 32-true, sync_batchnorm: false, max_epochs: 30}}
checkpoint: {{every_n_epochs: 99}}
"""
ARGUMENTS = ("--config", "settings.yaml", "--trainer.log_every_n_steps", "1")
# As SLURM's: a task a node, the signals of the job passed on to all, the highest exit code.
SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys
tasks = [
    subprocess.Popen(sys.argv[1:], env=os.environ | {{"SLURM_PROCID": str(n), "SLURM_NODEID": str(n), "SLURM_LOCALID": "0"}})
    for n in range(int(os.environ["SLURM_NTASKS"]))
]
for signum in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(signum, lambda signum, _: [task.send_signal(signum) for task in tasks])
open("srun.pid", "w").write(str(os.getpid()))
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""
SCONTROL = '#!/bin/sh\necho "$@" >>scontrol.log\n'


@pytest.fixture
def job(tmp_path):
    """A folder with images and settings, and starts a script there; what is started ends with the test."""
    image_folder(tmp_path / "images", 12, 4, ".png")
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    started = []

    def start(script, **variables):
        about = environment(tmp_path) | {"DATA": str(tmp_path / "images"), "RUN": "run", "PYTHON": sys.executable}
        log = (tmp_path / f"{len(started)}.log").open("wb")
        command = ["bash", str(FOLDER / script), *ARGUMENTS]
        started.append(
            subprocess.Popen(
                command, cwd=tmp_path, env=about | {"RECIPE": "simclr-imagenet1k-baseline"} | variables,
                stdout=log, stderr=log, start_new_session=True,
            )
        )  # fmt: skip
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def await_steps(folder, count, *processes):
    """Until so many steps are in the log."""
    stop = time.monotonic() + 100
    log = folder / "run" / "metrics.csv"
    while not log.exists() or len(log.read_text().splitlines()) <= count:
        said = "".join(path.read_text(errors="replace") for path in folder.glob("*.log"))
        assert all(process.poll() is None for process in processes), said
        assert time.monotonic() < stop, said
        time.sleep(0.05)


def saved_step(folder):
    return torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]


def check_finished(folder, stopped_at):
    run = read_run(folder / "run")
    assert run.facts["finished"] and run.facts["machine"]["processes"] == 2
    steps = run.series("loss")[0].tolist()
    assert steps == list(range(90)) and 0 < stopped_at < 90


def test_slurm(job, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    variables = {
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": str(10_000 + os.getpid() % 10_000),
        "SLURM_JOB_NAME": "imagenet", "SLURM_NNODES": "2", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NODELIST": "127.0.0.1",
    }  # fmt: skip
    first = job("imagenet_slurm.sh", **variables)
    await_steps(tmp_path, 3, first)
    os.kill(int((tmp_path / "srun.pid").read_text()), signal.SIGUSR1)
    assert first.wait(60) == 128 + signal.SIGUSR1, (tmp_path / "0.log").read_text()
    stopped_at = saved_step(tmp_path)
    assert (tmp_path / "scontrol.log").read_text() == f"requeue {variables['SLURM_JOB_ID']}\n"
    assert job("imagenet_slurm.sh", **variables).wait(100) == 0, (tmp_path / "1.log").read_text()
    check_finished(tmp_path, stopped_at)
    assert len((tmp_path / "scontrol.log").read_text().splitlines()) == 1


def test_torchrun(job, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        head = f"127.0.0.1:{free.getsockname()[1]}"

    def both():
        return [
            job("imagenet_torchrun.sh", NODES="2", NODE=node, GPUS="1", HEAD=head, TORCHELASTIC_ERROR_FILE="")
            for node in "01"
        ]

    machines = both()
    await_steps(tmp_path, 3, *machines)
    machines[1].send_signal(signal.SIGTERM)  # one machine is taken away
    assert all(machine.wait(60) for machine in machines)
    stopped_at = saved_step(tmp_path)
    assert [machine.wait(100) for machine in both()] == [0, 0]
    check_finished(tmp_path, stopped_at)

"""The scripts for ImageNet: two machines of one process each train, are stopped, and go on when a script runs again."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from amcl_fast.report import read_run
from tests.helpers import forks
from tests.helpers.command_line import NT_XENT, environment, image_folder, saved_step

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

FOLDER = Path(__file__).parents[2] / "examples"
# In place of what the recipe has for GPUs.
EPOCHS = 24  # of three steps
SETTINGS = f"""{NT_XENT}
    compile: false
trainer: {{accelerator: cpu, precision: 32-true, sync_batchnorm: false, max_epochs: {EPOCHS}}}
checkpoint: {{every_n_epochs: 99}}
knn: {{every_n_epochs: 99}}
"""
SLURM = {
    "SLURM_JOB_ID": str(10_000 + os.getpid() % 10_000), "SLURM_JOB_NAME": "imagenet", "SLURM_NNODES": "2",
    "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NODELIST": "127.0.0.1", "SLURM_CPUS_PER_TASK": "3",
}  # fmt: skip
ARGUMENTS = ("--config", "settings.yaml", "--trainer.log_every_n_steps", "1")
# As SLURM's: a task a node, the signals of the job passed on to all, the highest exit code.
SRUN = f"""#!{sys.executable}
import os, signal, sys
from tests.helpers import forks
assert os.environ["SRUN_CPUS_PER_TASK"] == os.environ["SLURM_CPUS_PER_TASK"] and os.environ["SLURM_KILL_BAD_EXIT"]
step = dict(os.environ, SLURM_STEP_ID="0", SLURM_STEP_NUM_TASKS=os.environ["SLURM_NTASKS"], SLURM_LOCALID="0")
step |= dict(SLURM_STEP_NODELIST=step["SLURM_NODELIST"], SLURM_STEP_TASKS_PER_NODE="1(x2)")
tasks = [
    forks.Popen(sys.argv[1:], env=step | dict(SLURM_PROCID=str(n), SLURM_NODEID=str(n)))
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
        about = forks.sharing(environment(tmp_path)) | {
            "DATA": str(tmp_path / "images"),
            "RUN": "run",
            "PYTHON": sys.executable,
        }
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
    running = [process for process in started if process.poll() is None]
    for process in running:
        process.terminate()  # torchrun's processes have sessions of their own, and it ends them
    below = [pid for process in running for pid in descendants(process.pid)]
    for process in running:
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
    for pid in (*below, *(process.pid for process in running)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for process in running:
        process.wait()


def descendants(pid):
    """Processes that it has started, and those that these have."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # it has ended
        return []
    return [*children, *(below for child in children for below in descendants(child))]


def await_steps(folder, count, *processes):
    """Until so many steps are in the log."""
    stop = time.monotonic() + 100
    log = folder / "run" / "metrics.csv"
    while not log.exists() or len(log.read_text().splitlines()) <= count:
        said = "".join(path.read_text(errors="replace") for path in folder.glob("*.log"))
        assert all(process.poll() is None for process in processes), said
        assert time.monotonic() < stop, said
        time.sleep(0.05)


def test_torchrun_then_slurm(job, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        head = f"127.0.0.1:{free.getsockname()[1]}"
    machines = [job("imagenet_torchrun.sh", NODES="2", NODE=node, GPUS="1", HEAD=head, RESTARTS="0") for node in "01"]
    await_steps(tmp_path, 3, *machines)
    machines[1].send_signal(signal.SIGTERM)  # one machine is taken away
    assert all(machine.wait(60) for machine in machines)
    stopped_at = [saved_step(tmp_path / "run")]

    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    variables = {**SLURM, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    warned = job("imagenet_slurm.sh", **variables)
    await_steps(tmp_path, stopped_at[0] + 3, warned)
    os.kill(int((tmp_path / "srun.pid").read_text()), signal.SIGUSR1)
    assert warned.wait(60) == 128 + signal.SIGUSR1, (tmp_path / "2.log").read_text()
    stopped_at.append(saved_step(tmp_path / "run"))
    requeued = (tmp_path / "scontrol.log").read_text()
    assert requeued == f"requeue {SLURM['SLURM_JOB_ID']}\n"

    assert job("imagenet_slurm.sh", **variables).wait(100) == 0, (tmp_path / "3.log").read_text()
    assert (tmp_path / "scontrol.log").read_text() == requeued
    run = read_run(tmp_path / "run")
    assert run.facts["finished"] and run.facts["machine"]["processes"] == 2
    steps = run.series("loss")[0].tolist()
    assert steps == list(range(3 * EPOCHS)) and 0 < stopped_at[0] < stopped_at[1] < len(steps)


@pytest.mark.parametrize(
    ("script", "variables", "expected"),
    [
        ("imagenet_torchrun.sh", {"GPUS": "4"}, "--standalone --nproc_per_node 4 … pretrain … --trainer.devices 4"),
        ("imagenet_torchrun.sh", {"NODES": "2", "NODE": "1"}, "--node_rank 1 … pretrain … --trainer.devices 8"),
        ("imagenet_slurm.sh", {}, "pretrain … --trainer.devices 1 --trainer.num_nodes 2"),
    ],
)
def test_the_same_command_begins_and_goes_on(tmp_path, script, variables, expected):
    (tmp_path / "srun").write_text('#!/bin/sh\nexec "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    about = {
        "PATH": f"{tmp_path}:{os.defpath}",
        "PYTHON": "echo",
        "HEAD": "host0:29500",
        "DATA": "images",
        "RUN": "run",
    }
    told = subprocess.run(
        ["bash", str(FOLDER / script), "--seed_everything", "7"], cwd=tmp_path, env={**SLURM, **about, **variables},
        capture_output=True, text=True,
    ).stdout  # fmt: skip
    command = "pretrain --recipe simclr-imagenet1k-amcl --data images --run_dir run --resume auto"
    pattern = re.escape(expected.replace("pretrain", command)).replace("…", ".*").replace(r".*\ ", ".*")
    assert re.search(f"{pattern}.* --seed_everything 7\n$", told), told
    assert ("--master_addr host0 --master_port 29500" in told) == ("NODES" in variables)


def test_several_machines_want_a_head(tmp_path):
    about = {"PATH": os.defpath, "DATA": "images", "RUN": "run", "NODES": "2", "NODE": "1"}
    done = subprocess.run(["bash", FOLDER / "imagenet_torchrun.sh"], env=about, capture_output=True, text=True)
    assert done.returncode and "HEAD: HOST:PORT of machine 0" in done.stderr


@pytest.mark.parametrize("script", ["imagenet_torchrun.sh", "imagenet_slurm.sh"])
def test_what_is_missing_is_named(tmp_path, script):
    done = subprocess.run(["bash", FOLDER / script], env={"PATH": os.defpath}, capture_output=True, text=True)
    assert done.returncode and "DATA: the folder of train/ and val/" in done.stderr

"""`amcl-fast evaluate` by two processes that torchrun starts: one's table and file, and one line where it cannot be."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from amcl_fast.cli import main
from amcl_fast.evaluate import command
from tests.helpers import forks
from tests.helpers.command_line import NT_XENT, environment, image_folder

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with images and a run of one step on them; one image turns out to be bad when it is decoded."""
    folder = tmp_path_factory.mktemp("evaluated")
    images = image_folder(folder / "images", 21, 9, ".png")
    hidden = images / "train" / "b" / "3.png"
    content = bytearray(hidden.read_bytes())
    content[200:600] = bytes(400)
    hidden.write_bytes(content)
    settings = folder / "settings.yaml"
    settings.write_text(f"{NT_XENT}trainer: {{max_steps: 1, accelerator: cpu}}\nknn: {{every_n_epochs: 0}}")
    options = ["--config", str(settings), "--data", str(images), "--run_dir", str(folder / "run")]
    assert main(["pretrain", *options]) == 0
    return folder


def torchrun(launcher, *options):
    command = [sys.executable, "-m", launcher, "--standalone", "--nproc_per_node=2"]
    return [*command, "-m", "amcl_fast.cli", "evaluate", "run", *options]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("/sets/train-{000000..000002}.tar", "evaluation-train-000000-000002-tar.json"),
        ("/sets/my photos.csv", "evaluation-my-photos-csv.json"),
        ("/sets/写真", "evaluation-写真.json"),
        ("cifar10", "evaluation-cifar10.json"),
        ("/", "evaluation-data.json"),
    ],
)
def test_the_result_has_a_plain_name(tmp_path, data, name):
    assert command._beside(tmp_path, data) == tmp_path / name


def test_two_processes_find_what_one_finds(run, monkeypatch, capsys):
    monkeypatch.chdir(run)
    options = ["--half", "--epochs", "2", "--batch_size", "10", "--k", "5"]
    assert main(["evaluate", "run", *options, "--output", "one.json"]) == 0
    alone = capsys.readouterr().out
    command = torchrun("torch.distributed.run", *options, "--output", "two.json")
    done = subprocess.run(command, cwd=run, env=environment(run), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == alone.replace("one.json", "two.json")
    assert "41 to learn from, 18 held out; 64 features in float16" in alone
    one, two = (json.loads((run / f"{name}.json").read_text()) for name in ("one", "two"))
    assert (one.pop("processes"), two.pop("processes")) == (1, 2)
    assert one == two and one["features_kept_in"] == "float16"
    assert [re.search(r"train/b/3\.png$", path) is not None for path, _ in one["skipped_files"]] == [True]


def test_a_process_that_fails_to_look_again_says_why(run, monkeypatch, capsys):
    """The others are told by `check_equal` itself, and say nothing."""

    def gone(*_):
        raise ValueError("images does not exist")

    monkeypatch.chdir(run)
    monkeypatch.setattr("amcl_fast.distributed.world", lambda: (1, 1))
    monkeypatch.setattr("amcl_fast.data.ContrastiveDataModule.check_equal", gone)
    assert main(["evaluate", "run"]) == 2
    assert capsys.readouterr().err == "amcl-fast evaluate: error: images does not exist\n"


def test_what_cannot_be_is_told_once_and_ends_both(run):
    command = torchrun("tests.helpers.torchrun", "--augment", "--batch_size", "9")
    done = forks.run(command, cwd=run, env=environment(run), timeout=300)
    assert done.returncode == 1  # torchrun's
    told = [line for line in done.stderr.splitlines() if line.startswith("amcl-fast")]
    assert told == ["amcl-fast evaluate: error: batch_size must divide by the 2 processes, got 9"]
    assert "encoder" not in done.stdout


def by_srun(folder, *options, interrupted=()):
    """Two tasks of a step as srun starts them, without --ntasks-per-node; a Ctrl-C ends them one after the other."""
    told = {
        "SLURM_JOB_ID": str(10_000 + os.getpid() % 10_000), "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2",
        "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NODEID": "0",
    }  # fmt: skip
    tasks = [
        forks.Popen(
            [sys.executable, "-m", "amcl_fast.cli", "evaluate", "run", *options], cwd=folder, text=True,
            env=environment(folder) | told | {"SLURM_PROCID": task, "SLURM_LOCALID": task},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for task in "01"
    ]  # fmt: skip
    try:
        for task in interrupted:
            if task == interrupted[0]:
                assert tasks[0].stdout.readline().startswith("encoder")
            time.sleep(0.5)
            tasks[task].send_signal(signal.SIGINT)
        return [(*task.communicate(timeout=200), task.returncode) for task in tasks]
    finally:
        for task in tasks:
            task.kill()


def test_srun_starts_several_without_a_number_a_machine(run):
    options = ["--epochs", "1", "--batch_size", "10", "--k", "5", "--output", "srun.json"]
    (told, _, code), (silent, _, other) = by_srun(run, *options)
    assert (code, other, silent) == (0, 0, "") and "written to  srun.json" in told
    assert json.loads((run / "srun.json").read_text())["processes"] == 2


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_ctrl_c_of_all_is_one_line(run, order):
    """Also where the one that it reaches first has ended before it reaches the other."""
    (_, told, code), (silent, others, other) = by_srun(run, "--epochs", "100000", interrupted=order)
    assert (code, other, silent) == (130, 130, ""), told + others
    # Progress may have been told by then, and the bad image.
    said = [line for line in (told + others).splitlines() if "left" not in line and "b/3.png: found" not in line]
    assert said == ["amcl-fast evaluate: stopped before its end: no result was written"]


def test_a_command_in_a_shell_of_a_job_runs_alone(run, monkeypatch):
    monkeypatch.chdir(run)
    job = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    for name, value in (job | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}).items():
        monkeypatch.setenv(name, value)
    assert main(["evaluate", "run", "--epochs", "1", "--output", "job.json"]) == 0
    assert json.loads((run / "job.json").read_text())["processes"] == 1


def test_too_little_memory_is_one_line(run, monkeypatch, capsys):
    def evaluate(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB. GPU 0 has …")

    monkeypatch.chdir(run)
    monkeypatch.setattr("amcl_fast.evaluate.command.evaluate", evaluate)
    assert main(["evaluate", "run"]) == 2
    told = "CUDA out of memory; --half, a smaller --batch_size, or more processes take less"
    assert capsys.readouterr().err == f"amcl-fast evaluate: error: {told}\n"

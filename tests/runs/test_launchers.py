"""A run that torchrun or srun has started is told what it must know, and waits for nobody who was not started."""

import re
from pathlib import Path

import pytest

from amcl_fast.cli import main
from tests.helpers.command_line import NT_XENT, image_folder

TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "WORLD_SIZE": "2"}
JOB = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "0", "SLURM_NODEID": "0"}
JOB |= {"SLURM_LOCALID": "0"}
SRUN = {**JOB, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
ALONE = {name: value for name, value in SRUN.items() if name != "SLURM_NTASKS_PER_NODE"}


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """The line with which a run ends that a launcher tells something, and which leaves nothing behind."""
    image_folder(tmp_path / "images", 8, 2)
    (tmp_path / "settings.yaml").write_text(NT_XENT + "trainer: {max_epochs: 1, accelerator: cpu}")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(variables, *options):
        for name, value in {"SLURM_NTASKS_PER_NODE": "", **variables}.items():
            monkeypatch.setenv(name, value)
        if "SLURM_NTASKS_PER_NODE" not in variables:  # it may be set meanwhile
            monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
        assert main(["pretrain", "--config", "../settings.yaml", "--data", "../images", *options]) == 2
        assert not list(Path.cwd().iterdir())
        return capsys.readouterr().err.splitlines()[-1]

    return run


@pytest.mark.parametrize("variables", [TORCHRUN, SRUN])
def test_processes_that_others_start_must_be_told_the_folder(variables, refused):
    told = "--run_dir must be given under torchrun or srun, the same to every process, got none"
    assert told in refused(variables)


@pytest.mark.parametrize(
    ("variables", "devices", "message"),
    [
        # Lightning does not look at srun there.
        (
            {**SRUN, "SLURM_JOB_NAME": "interactive"},
            1,
            r"trainer\.devices times trainer\.num_nodes must be 2, the processes that srun has started, got 1",
        ),
        (
            {**SRUN, "SLURM_JOB_NAME": "interactive"},
            2,
            r"srun must give the processes another name, as with --job-name=amcl, got 'interactive'",
        ),
        # A job's script without srun before the command.
        (JOB, 2, r"trainer\.devices must be 1 in a job of SLURM unless srun starts .*, got 2"),
        # srun -n 2, whose number of tasks a machine it tells of its step.
        (
            {**ALONE, "SLURM_STEP_TASKS_PER_NODE": "2"},
            1,
            r"trainer\.devices times trainer\.num_nodes must be 2, the processes that srun has started, got 1",
        ),
        (
            {**ALONE, "SLURM_STEP_TASKS_PER_NODE": "2,1"},
            1,
            r"srun must start as many processes on every machine \(--ntasks-per-node\), got \[2, 1\]",
        ),
        ({"SLURM_NTASKS": "2"}, 1, r"srun must start the processes of a job of 2 tasks, got this one alone"),
    ],
)
def test_processes_that_nobody_has_started_are_not_waited_for(variables, devices, message, refused):
    assert re.search(message, refused(variables, "--run_dir", "run", "--trainer.devices", str(devices)))

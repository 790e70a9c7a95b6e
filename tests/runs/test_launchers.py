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


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """The line with which a run ends that a launcher tells something, and which leaves nothing behind."""
    image_folder(tmp_path / "images", 8, 2)
    (tmp_path / "settings.yaml").write_text(NT_XENT + "trainer: {max_epochs: 1, accelerator: cpu}")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(variables, *options):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
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
    ],
)
def test_processes_that_nobody_has_started_are_not_waited_for(variables, devices, message, refused):
    assert re.search(message, refused(variables, "--run_dir", "run", "--trainer.devices", str(devices)))

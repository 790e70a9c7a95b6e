"""`--resume auto`: the same command begins a run, goes on with it, and ends at once when it has finished."""

import os
import re
from pathlib import Path

import pytest
import yaml

from amcl_fast.cli import main
from amcl_fast.pretraining.auto import requeue
from tests.helpers.command_line import saved_step
from tests.helpers.resuming import content, error

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("undrawn")]

FINISHED = "run has finished: there is nothing left to train\n"


@pytest.fixture
def command(finished, run, monkeypatch):
    """Gives the command that has begun the run `run`, which has finished, once more, with further settings."""
    start = ["--config", str(finished / "settings.yaml"), "--data", str(finished / "images"), "--run_dir", "run"]
    monkeypatch.syspath_prepend(str(run.parent))
    (run.parent / "own.py").write_text("import lightning\nclass Own(lightning.pytorch.Callback): ...\n")
    return lambda *more: main(["pretrain", *start, "--resume", "auto", *more])


@pytest.mark.parametrize(
    "same",
    [
        (),
        ("--data.batch_size", "8"),
        ("--data.views=2",),
        ("--trainer.callbacks+=own.Own", "--knn.k=100"),
    ],
)
def test_a_finished_run_is_left_alone(command, run, same, capsys):
    before = content(run)
    assert command(*same) == 0
    assert capsys.readouterr().out == FINISHED
    assert content(run) == before


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (("--model.optimizer.lr=0.3",), "a resumed run goes on with its own settings, got .*lr from 0.06 to 0.3"),
        (("--data.views=3", "--trainer.max_epochs=2"), "got data.views from 2 to 3"),
        (("--recipe", "demo"), "--recipe must be left out, as for the run in run, got demo"),
    ],
)
def test_another_training_is_refused(command, run, other, told, capsys):
    before = content(run)
    assert command(*other) == 2
    assert re.search(told, error(capsys))
    if "--recipe" in other:
        assert main(["pretrain", "--resume", "run", *other]) == 2
        assert re.search(told, error(capsys))
    assert content(run) == before


def test_a_longer_one_goes_on_and_gets_what_the_command_adds_once(command, run, capsys):
    for _ in range(2):
        assert command("--trainer.max_epochs=2", "--trainer.callbacks+=own.Own") == 0
    told = capsys.readouterr().out
    assert told.endswith(FINISHED) and "\nthis command changes trainer.max_epochs from 1 to 2\n" in told
    assert command("--trainer.callbacks+=own.Own") == 2  # the shorter one of before
    assert "trainer.max_epochs must be at least 2, the epochs that are trained already, got 1" in error(capsys)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert saved_step(run) == 4 and settings["trainer"]["max_epochs"] == 2
    assert [callback["class_path"] for callback in settings["trainer"]["callbacks"]] == ["own.Own"]
    assert main(["pretrain", "--resume", "run", "--trust", "--trainer.max_steps=9"]) == 0
    told = "nothing is left to train at step 4: trainer.max_epochs is 2, trainer.max_steps 9; the first that is reached"
    assert told in capsys.readouterr().out
    # The run names it, and this command does not.
    assert command("--trainer.max_epochs=3") == 2
    assert "run names what is no part of amcl_fast" in error(capsys)


def test_a_run_that_has_saved_nothing_begins_anew_with_the_settings_of_now(command, run, capsys):
    (run / "checkpoints" / "last.ckpt").unlink()
    assert command() == 0
    assert capsys.readouterr().out == FINISHED  # whose checkpoint somebody has removed
    assert command("--trainer.max_epochs=2") == 2
    assert "run has finished and holds no checkpoint" in error(capsys)
    (run / "run.json").unlink()
    assert command("--model.optimizer.lr=0.3") == 0
    assert "holds no checkpoint: the run begins anew" in capsys.readouterr().out
    assert saved_step(run) == 2
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["model"]["init_args"]["optimizer"]["lr"] == 0.3


def test_a_folder_of_something_else_is_refused(command, run, capsys):
    for path in (run / "config.yaml", run / "checkpoints" / "last.ckpt"):
        path.unlink()
    assert command() == 2
    assert "run holds a run, and two runs never share a folder" in error(capsys)


def test_a_folder_in_which_a_run_was_killed_while_it_wrote_its_settings_is_empty(command, run):
    for path in sorted(run.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (run / f"config.yaml.{'0' * 16}.partial").touch()
    assert command() == 0
    assert saved_step(run) == 2


def test_what_is_kept_in_other_words_is_no_change(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "views.yaml").write_text("data: {views: [{jitter: 0.5}, {blur: 0.5}]}\n")
    start = ["--config", str(finished / "settings.yaml"), "--config", "views.yaml", "--data", f"{finished}/images"]
    command = ["pretrain", *start, "--data.views=3", "--run_dir", "run", "--resume", "auto"]
    assert main(command) == 0
    capsys.readouterr()
    assert main(command) == 0
    assert capsys.readouterr().out == FINISHED


def test_the_folder_must_be_given(finished, capsys):
    assert main(["pretrain", "--config", str(finished / "settings.yaml"), "--resume", "auto"]) == 2
    assert "--run_dir must be given with --resume auto" in error(capsys)


@pytest.mark.parametrize(
    ("variables", "script", "told"),
    [
        ({"SLURM_JOB_ID": "7"}, 'echo "$@" >asked', "job 7 is queued again\n"),
        (
            {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "3"},
            "echo Access denied >&2; exit 1",
            "job 8_3 cannot be queued again (Access denied): go on with the same command\n",
        ),
        ({}, "exit 1", ""),
    ],
)
def test_a_job_is_queued_again(tmp_path, monkeypatch, capsys, variables, script, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.defpath}")
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    Path("scontrol").write_text(f"#!/bin/sh\n{script}\n")
    Path("scontrol").chmod(0o755)
    requeue()
    assert capsys.readouterr().out == told
    assert not Path("asked").exists() or Path("asked").read_text() == "requeue 7\n"

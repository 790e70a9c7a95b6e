"""amcl_fast.study.training: the order, what is left of a study, signals."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from amcl_fast.runs.directory import VARIABLE
from amcl_fast.runs.in_place import PlaceError
from amcl_fast.runs.lock import RunLock
from amcl_fast.study import training as module
from amcl_fast.study.folder import open_folder
from amcl_fast.study.training import Commands, StopError, Training, train_all
from tests.helpers.studies import finished


@pytest.fixture
def three(tmp_path):
    return [Training("demo", seed, tmp_path, ("--data.limit", "9")) for seed in range(3)]


@pytest.fixture
def told(monkeypatch):
    """What each training is told, in order; how it ends is popped from the end of `codes`, 0 without one."""
    calls, codes = [], []

    def run(commands, arguments):
        calls.append(arguments)
        code = codes.pop() if codes else 0
        if code == 0:
            finished(next(run_dir for run_dir in map(module.Path, arguments) if run_dir.is_absolute()), [30.0])
        if code > 128:
            commands.received = code - 128
        return code

    monkeypatch.setattr(Commands, "run", run)
    return calls, codes


def test_a_new_run_an_unfinished_one_and_a_finished_one(tmp_path):
    training = Training("demo", 1, tmp_path, ("--data.limit", "9"), ("--data.root", "/b"))
    run_dir = str(tmp_path / "demo-1")
    new = ["--recipe", "demo", "--seed_everything", "1", "--run_dir", run_dir]
    assert training.arguments == ["pretrain", *new, "--data.limit", "9"] and training.result() is None
    run = finished(tmp_path / "demo-1", [30.0], finished=False)
    assert training.arguments == ["pretrain", "--resume", run_dir, "--data.root", "/b"] and training.result() is None
    (run / "run.json").write_text('{"finished": true}')
    assert training.result().last("knn") == 30.0


def test_what_has_finished_is_read_and_the_rest_is_trained_in_order(three, told, capsys):
    finished(three[1].run_dir, [40.0], seconds=100.0)
    drawn = []
    assert train_all(three, lambda done: drawn.append([training.seed for training in done])) == []
    assert [arguments[4] for arguments in told[0]] == ["0", "2"]
    assert drawn == [[1], [1, 0], [1, 0, 2]]
    # 100 s for each of two, then the mean of 100 s and 60 s for one.
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "training 1 of 3: demo, seed 0; about 3 min to the end of the study, by the trainings so far",
        "training 3 of 3: demo, seed 2; about 80 s to the end of the study, by the trainings so far",
    ]


def test_a_training_that_fails_ends_alone(three, told, capsys):
    calls, codes = told
    codes += [0, -9, 1]  # the last one first
    assert train_all(three, lambda done: None) == three[:2]
    assert len(calls) == 3
    err = capsys.readouterr().err.splitlines()
    assert [line.partition("of ")[2] for line in err] == [
        "demo, seed 0 ended with exit code 1 before its last epoch",
        "demo, seed 1 was ended by SIGKILL before its last epoch",
    ]


def test_a_training_that_was_ended_while_it_was_measured_is_told_apart(three, monkeypatch, capsys):
    """Nothing is left to train, so that it ends well at each try, and never finishes."""
    finished(three[0].run_dir, [30.0], finished=False)
    monkeypatch.setattr(Commands, "run", lambda self, arguments: 0)
    assert train_all(three[:1], lambda done: None) == three[:1]
    assert capsys.readouterr().err == (
        "the training of demo, seed 0 has reached its end and was ended before all was measured: remove "
        f"{three[0].run_dir} to train it again\n"
    )


def test_a_refusal_would_be_that_of_the_others(three, told):
    told[1].append(2)
    with pytest.raises(StopError, match="demo, seed 0 was refused") as stop:
        train_all(three, lambda done: None)
    assert stop.value.code == 2 and len(told[0]) == 1


def test_a_signal_ends_the_study_after_its_training(three, told):
    told[1].extend([130, 0])
    with pytest.raises(StopError, match="stopped after 1 of 3 trainings") as stop:
        train_all(three, lambda done: None)
    assert stop.value.code == 130 and len(told[0]) == 2


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_reach_the_training_once(signum, monkeypatch):
    """Which has a session of its own, so that no terminal sends them as well; it ends as it likes."""
    child = """
import os, signal, sys
parent, signum = map(int, sys.argv[1:])
signal.pthread_sigmask(signal.SIG_BLOCK, {signum})
own = os.getsid(0) == os.getpid()
os.kill(parent, signum)
signal.sigwait({signum})
sys.exit(70 + own + 2 * (signum in signal.sigpending()))
"""

    def start(command, **given):
        assert command == [sys.executable, "-m", "amcl_fast.cli", "pretrain"]
        return subprocess.Popen([sys.executable, "-c", child, str(os.getpid()), str(int(signum))], **given)

    monkeypatch.setattr(module, "Popen", start)
    before = signal.getsignal(signum)
    with Commands() as commands:
        assert commands.run(["pretrain"]) == 71
    assert commands.received == signum and signal.getsignal(signum) == before


def test_a_signal_while_a_training_is_started_reaches_it(monkeypatch):
    child = "import signal; signal.sigwait({signal.SIGTERM}); raise SystemExit(70)"

    def start(command, **given):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # which the child inherits
        process = subprocess.Popen([sys.executable, "-c", child], **given)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        signal.raise_signal(signal.SIGTERM)
        return process

    monkeypatch.setattr(module, "Popen", start)
    with Commands() as commands:
        assert commands.run(["pretrain"]) == 70


def test_a_training_in_a_job_of_slurm_starts_its_own_processes(monkeypatch):
    """Lightning would wait for those of srun; nor does it take the folder of another run."""
    for name in ("SLURM_NTASKS", "SLURM_JOB_ID", VARIABLE):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    environment = module._environment()
    assert environment["CUDA_VISIBLE_DEVICES"] == "3"
    assert not {"SLURM_NTASKS", "SLURM_JOB_ID", VARIABLE} & environment.keys()


def test_a_training_whose_folder_is_a_link_is_read_and_never_trained(tmp_path):
    elsewhere = finished(tmp_path / "elsewhere" / "run", [30.0])
    study = Training("demo", 0, tmp_path / "study")
    study.study.mkdir()
    (tmp_path / "link").symlink_to(study.study)  # as the whole study may be
    study.run_dir.symlink_to(elsewhere)
    for folder in (study.study, tmp_path / "link"):
        with RunLock() as lock:
            open_folder(folder, "epochs", [replace(study, study=folder)], lock)
    finished_not = finished(tmp_path / "elsewhere" / "other", [30.0], finished=False)
    study.run_dir.unlink()
    for target in (finished_not, tmp_path / "nowhere"):
        study.run_dir.symlink_to(target)
        message = f"^{study.run_dir} is a link to {target}, and nothing is written through it: remove it$"
        with pytest.raises(PlaceError, match=message), RunLock() as lock:
            open_folder(study.study, "epochs", [study], lock)
        study.run_dir.unlink()

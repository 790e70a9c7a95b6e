"""What torchrun starts again goes on with the run that this torchrun has begun, and with no other."""

import csv
import itertools
from collections import Counter
from contextlib import nullcontext

import pytest
import torch.distributed as dist

from amcl_fast.cli import main
from amcl_fast.pretraining import auto
from tests.helpers.command_line import saved_step
from tests.helpers.killing import BrokenOffError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("undrawn")]

REFUSED = 0


@pytest.fixture
def torchrun(finished, tmp_path, monkeypatch):
    """Gives a command to a new torchrun of one process, whose attempts end after so many steps, but for the last.

    That gives the same command once more in the same process, so many times.
    """
    monkeypatch.chdir(tmp_path)
    start = ["--config", str(finished / "settings.yaml"), "--data", str(finished / "images"), "--trainer.max_epochs=3"]
    start += ["--knn.every_n_epochs=0", "--checkpoint.every_n_steps=2", "--checkpoint.every_n_epochs=9"]
    start += ["--checkpoint.keep_every_n_epochs=1", "--trainer.callbacks+=tests.helpers.killing.BreakOff"]

    def run(*command, breaks=(), again=0):
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        variables = {"RUN_ID": "none", "USE_AGENT_STORE": "True", "MAX_RESTARTS": "3"}
        told = {f"TORCHELASTIC_{name}": value for name, value in variables.items()}
        told |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
        for name, value in told.items():
            monkeypatch.setenv(name, value)
        new = [*start, f"--trainer.callbacks.steps={[*breaks]}"]
        for attempt in itertools.count():
            monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))
            monkeypatch.setattr(auto, "_commands", Counter())  # as in a process of its own
            given = ["pretrain", *command, *([] if "--resume" in command else new)]
            if attempt == len(breaks):
                return max(main(given) for _ in range(1 + again))
            with nullcontext() if breaks[attempt] is REFUSED else pytest.raises(BrokenOffError):
                assert main(given) == 2

    return run


def steps(run):
    with (run / "metrics.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row["loss"]]


def restarts(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("restart")]


def test_it_goes_on_from_what_was_saved(torchrun, tmp_path, capsys):
    """A new run, in a folder that it has named itself, and one that goes on from an earlier checkpoint."""
    assert torchrun(breaks=[1, 3, 3]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    run = run.relative_to(tmp_path)
    assert restarts(capsys) == [
        f"restart 1 of torchrun: {run} holds no checkpoint: the run begins anew",
        f"restart 2 of torchrun: goes on from step 2 of {run}",
        f"restart 3 of torchrun: goes on from step 2 of {run}",
    ]
    assert saved_step(run) == 6 and steps(run) == list(range(6))

    # Another torchrun, of the same name: the folder is none of its making, nor of the one before it.
    assert torchrun("--run_dir", str(run), breaks=[REFUSED]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "two runs never share a folder" in line]
    assert len(errors) == 2

    # Until something is saved that checkpoint counts, and then the last one.
    kept = run / "checkpoints" / "epoch-0001.ckpt"
    resumed = ("--resume", str(kept), "--trust", "--trainer.callbacks.steps=[3,5]")
    assert torchrun(*resumed, breaks=[3, 5]) == 0
    assert restarts(capsys) == [
        f"restart 1 of torchrun: nothing was saved in {run}, it begins as the first time",
        f"restart 2 of torchrun: goes on from step 4 of {run}",
    ]
    assert saved_step(run) == 6 and steps(run) == list(range(6))


def test_a_script_of_several_runs_has_each_for_itself(torchrun, tmp_path, capsys):
    """Two of the same command, in folders that they name themselves: one goes on, the other begins."""
    assert torchrun(breaks=[3], again=1) == 0
    first, second = sorted((tmp_path / "runs").iterdir())
    assert restarts(capsys) == [f"restart 1 of torchrun: goes on from step 2 of {first.relative_to(tmp_path)}"]
    assert [steps(run) for run in (first, second)] == [[*range(6)]] * 2

    # Another command of the same script is no second attempt of the first one's.
    names = [auto.name_of(command) for command in (("a", None), ("b", None), ("a", None))]
    assert len({*names}) == 3

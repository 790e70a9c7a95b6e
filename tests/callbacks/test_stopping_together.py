"""Several processes stop after the same step, soon after a signal that one of them gets."""

import os
import signal
from types import SimpleNamespace

import lightning as L
import pytest
import torch.distributed as dist

from amcl_fast import distributed
from amcl_fast.callbacks import Checkpoint, Interrupted, SaveOnSignal, StopSignals, signals
from amcl_fast.callbacks.signals import _BATCHES
from amcl_fast.distributed import Pace
from tests.helpers.command_line import saved_step
from tests.helpers.fake_data import FakeDataModule
from tests.helpers.processes import end_group, spawn, start
from tests.helpers.running import fit


def meetings(monkeypatch, durations, most):
    """Items after which two processes meet, of which the second takes ten times as long."""
    clock = [0.0]
    monkeypatch.setattr(distributed.time, "monotonic", lambda: clock[0])
    paces, found = [Pace(most), Pace(most)], []
    for item, seconds in enumerate(durations, 1):
        clock[0] += seconds / 10
        first = paces[0].done()
        clock[0] += seconds - seconds / 10
        assert paces[1].done() == first
        if first:
            found.append(item)
            longest = max(pace.longest for pace in paces)
            for pace in paces:
                pace.met(longest)
    return found


def test_processes_meet_once_a_second_after_the_same_item(monkeypatch):
    assert meetings(monkeypatch, [0.25] * 12, 16) == [1, 5, 9]
    assert meetings(monkeypatch, [3.0] * 3, 16) == [1, 2, 3]
    assert meetings(monkeypatch, [0.001] * 40, 16) == [1, 17, 33]
    # After items that were quick, slow ones are few; a long pause counts as an item.
    assert meetings(monkeypatch, [0.25] * 2 + [3.0] * 5, 4) == [1, 5, 6, 7]
    assert meetings(monkeypatch, [0.25] * 5 + [600] + [0.25] * 5, 4) == [1, 5, 9, 10]


def test_the_group_of_signals_is_formed_while_a_signal_ends_who_waits_for_it(monkeypatch):
    found = []
    monkeypatch.setattr(signals.dist, "get_backend", lambda: "nccl")
    with StopSignals() as own:
        own.at_once = True
        monkeypatch.setattr(signals.dist, "new_group", lambda backend: found.append((backend, own.at_once)))
        SaveOnSignal(Checkpoint(), own).on_train_start(SimpleNamespace(world_size=2), None)
        assert found == [("gloo", True)] and not own.at_once


class Send(L.Callback):
    """Sends one process a signal in a batch, counted from 1."""

    def __init__(self, rank, batch, signum):
        self.rank, self.batch, self.signum = rank, batch, signum

    def on_train_batch_start(self, trainer, *_):
        if (trainer.global_rank, trainer.fit_loop.total_batch_idx + 1) == (self.rank, self.batch):
            os.kill(os.getpid(), self.signum)


class Steps(L.Callback):
    def on_train_batch_end(self, trainer, *_):
        self.last = trainer.global_step


def worker(rank, port, folder):
    start(rank, 2, port)
    monkeypatch = pytest.MonkeyPatch()
    settings = {"strategy": "ddp", "devices": 2, "log_every_n_steps": 50, "max_epochs": 2}

    def stopped(name, send, data, **more):
        checkpoint, steps = Checkpoint(every_n_epochs=9), Steps()
        callbacks = [steps, send, SaveOnSignal(checkpoint)]
        with pytest.raises(Interrupted) as end:
            fit(folder / name, data=data, checkpoint=checkpoint, extra=callbacks, **settings, **more)
        assert end.value.signum == send.signum
        assert saved_step(folder / name) == steps.last
        return steps.last

    for of, backend in enumerate(("gloo", "nccl")):
        # With NCCL they agree in a group of their own, which ends with the training.
        monkeypatch.setattr(signals, "dist", SimpleNamespace(**{**vars(dist), "get_backend": lambda own=backend: own}))
        assert 3 <= stopped(f"of-{of}", Send(of, 3, signal.SIGTERM), FakeDataModule(steps=48)) <= 3 + _BATCHES
    # Within a step of many batches, which ends it, whatever the log is told of it.
    send, data = Send(1, 21, signal.SIGUSR1), FakeDataModule(steps=200)
    assert stopped("accumulated", send, data, accumulate_grad_batches=20) == 2
    # In an epoch's last batch: after its closing work.
    assert stopped("epoch", Send(0, 4, signal.SIGHUP), FakeDataModule()) == 4
    # In the last one of all: the training ends as it would have.
    checkpoint = Checkpoint()
    extra = [Send(1, 8, signal.SIGTERM), SaveOnSignal(checkpoint)]
    fit(folder / "end", data=FakeDataModule(), checkpoint=checkpoint, extra=extra, **settings)
    assert saved_step(folder / "end") == 8
    end_group()


@pytest.mark.slow
@pytest.mark.distributed
def test_a_signal_to_one_stops_all_after_the_same_step(tmp_path, port):
    spawn(worker, args=(port, tmp_path), nprocs=2)

"""A training that stops anywhere and goes on ends as if it had not: weights, metrics, kNN, lines, checkpoints."""

import csv
import signal

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from amcl_fast.callbacks import (
    Checkpoint,
    EpochSummary,
    Interrupted,
    MetricsFile,
    OnlineKNN,
    SaveOnSignal,
    Throughput,
)
from amcl_fast.callbacks.capture import capture
from amcl_fast.optim import OptimizerConfig, ScheduleConfig, lr_factor
from tests.helpers.fake_data import FakeDataModule, FakeLoader
from tests.helpers.running import fit, method

pytestmark = pytest.mark.slow

CLOCK = ("images_per_second", "wait_share")
DTYPES = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16, "bf16-mixed": torch.float32}


class Data(FakeDataModule):
    """With what a look at the pairs asks for besides."""

    mean, std = (0.5,) * 3, (0.25,) * 3

    def train_dataloader(self):
        return FakeLoader(self.loader.steps, self.loader.batch)


class Halt(L.Callback):
    """Asks the trainer to stop after a batch, as Lightning's timer of max_time does."""

    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop |= trainer.fit_loop.total_batch_idx + 1 == self.batch


class Signal(SaveOnSignal):
    """A SIGTERM that comes in a batch."""

    def __init__(self, batch):
        super().__init__(None)
        self.batch = batch

    def setup(self, trainer, pl_module, stage):
        self.checkpoint = trainer.checkpoint_callback

    def on_train_batch_end(self, trainer, *arguments):
        if trainer.fit_loop.total_batch_idx + 1 == self.batch:
            self.signals.received = signal.SIGTERM
        super().on_train_batch_end(trainer, *arguments)


class Rates(L.Callback):
    """Learning rates of every group at every step."""

    def __init__(self):
        self.seen = {}

    def on_train_batch_start(self, trainer, *_):
        self.seen[trainer.global_step] = [group["lr"] for group in trainer.optimizers[0].param_groups]


def at_a_constant_rate(rate=0.05, **settings):
    """The same steps whatever the length of the training is."""
    module = method(**settings)
    module.constant_lr = dict.fromkeys(("backbone", "projector", "criterion"), rate)
    return module


def train(folder, module, *, data=None, resume=False, extra=(), **settings):
    """One part of a run; returns trainer and kNN."""
    settings = {"log_every_n_steps": 2, "max_epochs": -1, **settings}
    checkpoint, step = folder / "checkpoints" / "last.ckpt", None
    if resume:
        step = torch.load(checkpoint, weights_only=True)["global_step"]
    knn = OnlineKNN(every_n_epochs=2)
    trainer = fit(
        folder,
        module,
        data or FakeDataModule(),
        checkpoint=Checkpoint(every_n_epochs=3, keep_every_n_epochs=2),
        extra=[knn, Throughput(), EpochSummary(), *extra],
        logger=MetricsFile(folder, step),
        ckpt_path=checkpoint if resume else None,
        **settings,
    )
    return trainer, knn


def rows(folder):
    """metrics.csv; of what the clock says, whether it is there."""
    with (folder / "metrics.csv").open() as file:
        return [
            {name: bool(value) if name in CLOCK else value for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]


def agree(found, expected, folders):
    """Trainers and kNN of the last parts, and the folders of two runs, have the same to say."""
    (trainer, knn), (whole, whole_knn) = found, expected
    assert trainer.global_step == whole.global_step and trainer.current_epoch == whole.current_epoch
    for name, value in whole.lightning_module.state_dict().items():
        assert torch.equal(trainer.lightning_module.state_dict()[name], value), name
    assert knn.history == whole_knn.history
    assert rows(folders[0]) == rows(folders[1])
    kept = [{path.name for path in (folder / "checkpoints").iterdir()} for folder in folders]
    assert kept[0] == kept[1]
    states = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in folders]
    names = ("epoch_progress", "epoch_loop.batch_progress", "epoch_loop.state_dict")
    first, second = ({name: state["loops"]["fit_loop"][name] for name in names} for state in states)
    assert first == second and states[0]["epoch"] == states[1]["epoch"]


# Of four steps an epoch: within the first one, at its end, within the second, after the third, and more than once.
@pytest.mark.parametrize(("stops", "accumulated"), [([3], 1), ([1, 5, 8, 12, 13], 1), ([3, 4, 9], 3)])
def test_a_training_is_extended_by_steps(tmp_path, capsys, stops, accumulated):
    def part(name, steps, resume=False):
        data = FakeDataModule(steps=4 if accumulated == 1 else 10)  # the fourth step has but one batch
        settings = {"max_steps": steps, "accumulate_grad_batches": accumulated}
        return train(tmp_path / name, at_a_constant_rate(), data=data, resume=resume, **settings)

    whole = part("whole", 14)
    capsys.readouterr()
    for number, stop in enumerate(stops):
        trainer, knn = part("parts", stop, resume=number > 0)
        done, within = divmod(stop, 4)
        assert (trainer.global_step, trainer.current_epoch) == (stop, done)
        assert knn.history[-1][0] == done + bool(within)
        line = capsys.readouterr().out.splitlines()[-1]
        assert line.startswith(f"epoch {done + 1}/{done + 1}, stopped at step {stop}" if within else f"epoch {done}/")
    found = part("parts", 14, resume=True)
    assert found[0].global_step == 14
    agree(found, whole, (tmp_path / "parts", tmp_path / "whole"))
    assert [epoch for epoch, _ in found[1].history] == [2, 4]


# By batches; three make a step, the last step of an epoch of eight has two.
@pytest.mark.parametrize(
    ("accumulated", "batch", "steps", "interval"),
    [(1, 3, 3, "step"), (1, 8, 8, "epoch"), (3, 4, 2, "step"), (3, 10, 4, "epoch"), (3, 7, 3, "step")],
)
def test_a_training_that_was_asked_to_stop_goes_on(tmp_path, accumulated, batch, steps, interval):
    """By a timer, which ends it, and by a signal, which breaks it off."""

    def part(name, resume=False, **settings):
        module = method(schedule=ScheduleConfig(warmup_epochs=0.5, interval=interval))
        settings = {"max_epochs": 3, "accumulate_grad_batches": accumulated, **settings}
        return train(tmp_path / name, module, data=FakeDataModule(steps=8), resume=resume, **settings)

    whole = part("whole")
    stopped, _ = part("halted", extra=[Halt(batch)])
    assert stopped.global_step == steps  # never within a step, whose gradients would be lost
    agree(part("halted", resume=True), whole, (tmp_path / "halted", tmp_path / "whole"))
    with pytest.raises(Interrupted):
        part("killed", extra=[Signal(batch)])
    agree(part("killed", resume=True), whole, (tmp_path / "killed", tmp_path / "whole"))


@pytest.mark.parametrize("stop", [3, 7])
def test_epochs_of_less_than_the_data(tmp_path, stop):
    def part(name, steps, resume=False):
        settings = {"max_steps": steps, "limit_train_batches": 3}
        return train(tmp_path / name, at_a_constant_rate(), resume=resume, **settings)

    whole = part("whole", 11)
    part("parts", stop)
    agree(part("parts", 11, resume=True), whole, (tmp_path / "parts", tmp_path / "whole"))


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "16-true", "bf16-mixed"])
def test_every_precision_goes_on(tmp_path, precision):
    def part(name, steps, resume=False):
        data = Data()
        trainer, knn = train(
            tmp_path / name, at_a_constant_rate(), data=data, resume=resume, max_steps=steps, precision=precision
        )
        with trainer.precision_plugin.forward_context():
            snapshot = capture(trainer.lightning_module, data, pairs=8)
        assert np.isfinite(snapshot.positive_similarity).all() and np.isfinite(snapshot.embedding).all()
        return trainer, knn

    whole = part("whole", 7)
    part("parts", 5)
    agree(part("parts", 7, resume=True), whole, (tmp_path / "parts", tmp_path / "whole"))
    saved = torch.load(tmp_path / "parts" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert saved["backbone.conv1.weight"].dtype == DTYPES[precision]


def test_a_finished_training_extended_by_epochs(tmp_path):
    whole = train(tmp_path / "whole", at_a_constant_rate(), max_epochs=5)
    train(tmp_path / "parts", at_a_constant_rate(), max_epochs=3)
    found = train(tmp_path / "parts", at_a_constant_rate(), max_epochs=5, resume=True)
    agree(found, whole, (tmp_path / "parts", tmp_path / "whole"))


def test_an_old_checkpoint_of_a_stop_within_an_epoch_goes_on(tmp_path):
    """Versions before counted the epoch as a whole one, and its kNN too."""
    whole = train(tmp_path / "whole", at_a_constant_rate(), max_steps=14)
    train(tmp_path / "parts", at_a_constant_rate(), max_steps=5)
    path = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    del state["exact_resume"]["accumulated"]  # with which their counters are known to be right
    loops = state["loops"]["fit_loop"]
    for counts in (loops["epoch_progress"]["total"], loops["epoch_progress"]["current"]):
        counts |= {"processed": 2, "completed": 2}
    for counts in loops["epoch_loop.batch_progress"].values():
        if isinstance(counts, dict):
            counts["completed"] = counts["processed"]
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = 5
    state["callbacks"]["OnlineKNN"] |= {"history": [(2, 50.0)], "closed": False}
    torch.save(state, path)
    found = train(tmp_path / "parts", at_a_constant_rate(), max_steps=14, resume=True)
    agree(found, whole, (tmp_path / "parts", tmp_path / "whole"))


@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize(("stop", "length"), [(3, 14), (8, 9), (8, 20)])
@pytest.mark.parametrize("warmup", [0.0, 0.75])
def test_rates_after_a_resume_are_those_of_the_new_schedule(tmp_path, interval, stop, length, warmup):
    def part(steps, resume=False):
        module = method(
            optimizer=OptimizerConfig(lr=0.1), schedule=ScheduleConfig(warmup_epochs=warmup, interval=interval)
        )
        module.constant_lr = {"projector": 0.3}
        rates = Rates()
        path = tmp_path / "checkpoints" / "last.ckpt"
        fit(tmp_path, module, extra=[rates], ckpt_path=path if resume else None, max_epochs=-1, max_steps=steps)
        return rates.seen

    part(stop)
    seen = part(length, resume=True)
    assert list(seen) == list(range(stop, length))
    for step, rates in seen.items():
        place, total, ramp = (step, length, 4 * warmup) if interval == "step" else (step // 4, -(-length // 4), warmup)
        assert rates == pytest.approx([0.1 * lr_factor(place, total, round(ramp)), 0.3], rel=1e-12)


@pytest.mark.parametrize("batch", [8, 12, 16])  # within a step of two, after one, within one of four
def test_a_callback_that_changes_the_accumulation_goes_on_within_an_epoch(tmp_path, batch):
    """Batches of a step, steps, rows and weights; a stop within a step comes after it."""

    def part(folder, extra=(), **settings):
        extra = [GradientAccumulationScheduler({0: 1, 1: 2, 2: 4}), *extra]
        return train(folder, at_a_constant_rate(), data=Data(steps=7), extra=extra, max_epochs=3, **settings)[0]

    settings = {"log_every_n_steps": 1}
    whole = part(tmp_path / "whole", **settings)
    with pytest.raises(Interrupted):
        part(tmp_path / "parts", [Signal(batch)], **settings)
    trainer = part(tmp_path / "parts", resume=True, **settings)
    assert trainer.global_step == whole.global_step == 7 + 4 + 2
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    for name, value in trainer.lightning_module.state_dict().items():
        assert torch.equal(value, whole.lightning_module.state_dict()[name]), name

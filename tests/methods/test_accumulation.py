"""With accumulation a step is that of the optimiser, in everything that is logged."""

import csv

import lightning as L
import pytest
import torch

from amcl_fast.callbacks import Guard, MetricsFile, NonFiniteError, Throughput
from amcl_fast.optim import OptimizerConfig
from amcl_fast.recipes import FRAMEWORKS
from tests.helpers import toy_methods
from tests.helpers.fake_data import FakeDataModule, FakeLoader
from tests.helpers.running import fit, method


class Losses(L.Callback):
    """The loss of every batch, as the method computed it."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.seen.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)


class Same(FakeLoader):
    """The same batch again and again."""

    def _draw(self, position):
        return super()._draw(0)


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def test_the_logged_loss_is_the_mean_over_the_batches_of_a_step(tmp_path):
    losses = Losses()
    settings = {"accumulate_grad_batches": 4, "max_epochs": 2, "log_every_n_steps": 1}
    data = FakeDataModule(steps=10)
    trainer = fit(tmp_path, data=data, extra=[losses], logger=MetricsFile(tmp_path), **settings)
    halves = [losses.seen[:10], losses.seen[10:]]
    expected = [sum(half[i:j]) / (j - i) for half in halves for i, j in ((0, 4), (4, 8), (8, 10))]
    assert [row["loss"] for row in rows(tmp_path)] == pytest.approx(expected)
    assert [row["step"] for row in rows(tmp_path)] == list(range(6))
    assert float(trainer.callback_metrics["loss"]) == pytest.approx(expected[-1])


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_framework_logs_the_mean_of_what_it_computed(tmp_path, framework):
    """Of its own losses, not of what Lightning hands on, batch for batch; the last step has fewer."""
    module = toy_methods.method(framework, optimizer=OptimizerConfig(lr=0.05))
    loss_of_views, seen = module.loss_of_views, []

    def recorded(views):
        loss = loss_of_views(views)
        seen.append(float(loss.detach()))
        return loss

    module.loss_of_views = recorded
    settings = {"accumulate_grad_batches": 4, "max_epochs": 1, "log_every_n_steps": 1}
    fit(tmp_path, module, FakeDataModule(steps=10), logger=MetricsFile(tmp_path), **settings)
    means = [sum(seen[i:j]) / (j - i) for i, j in ((0, 4), (4, 8), (8, 10))]
    assert [row["loss"] for row in rows(tmp_path)] == pytest.approx(means)
    assert len(seen) == 10 and max(seen) - min(seen) > 1e-3


# MoCo is not among them: its later batches meet the keys of the first.
@pytest.mark.parametrize("framework", [name for name in FRAMEWORKS if name != "moco"])
def test_the_same_batches_log_the_same_whatever_the_accumulation(tmp_path, framework):
    def logged(accumulated):
        folder = tmp_path / str(accumulated)
        data = FakeDataModule(steps=accumulated)
        data.loader = Same(accumulated, 8)
        module = toy_methods.undrawn(toy_methods.method(framework, optimizer=OptimizerConfig(lr=0.0)))
        settings = {"gradient_clip_val": 1e9, "log_every_n_steps": 1, "max_epochs": 1}
        fit(folder, module, data, logger=MetricsFile(folder), accumulate_grad_batches=accumulated, **settings)
        return rows(folder)

    (once,), (four,) = logged(1), logged(4)
    assert four == pytest.approx(once, rel=1e-5)
    assert once["gradient_norm"] > 0


@pytest.mark.parametrize("every", [1, 2])
def test_images_per_second_are_those_of_all_batches_of_the_steps(tmp_path, monkeypatch, every):
    class Clock(L.Callback):
        now = 0.0

        def perf_counter(self):
            return self.now

        def on_train_batch_end(self, *_):
            self.now += 1.0

    clock = Clock()
    monkeypatch.setattr("amcl_fast.callbacks.throughput.time", clock)
    settings = {"accumulate_grad_batches": 3, "max_epochs": 1, "log_every_n_steps": every}
    logger = MetricsFile(tmp_path)
    fit(tmp_path, data=FakeDataModule(steps=12), extra=[clock, Throughput()], logger=logger, **settings)
    found = [(row["step"], row["images_per_second"]) for row in rows(tmp_path)]
    assert found == [(step, pytest.approx(8.0)) for step in range(every - 1, 4, every)]


def test_a_queue_takes_every_batch_and_its_encoder_follows_every_step():
    module = toy_methods.method("moco")
    followed = []
    module.key_encoder.update = lambda *_: followed.append(module.queue.written)
    toy_methods.fit(module, FakeDataModule(steps=8), accumulate_grad_batches=3)
    assert followed == [48, 96, 128] and module.queue.written == 8 * 16


def test_a_loss_that_is_not_finite_ends_the_training_in_its_batch(tmp_path):
    with pytest.raises(NonFiniteError, match=r"step 1, epoch 0: the loss is not finite"):
        fit(tmp_path, method(), FakeDataModule(nan_at=2), guard=Guard(), accumulate_grad_batches=2)


def test_learning_rates_scale_with_the_images_of_a_step():
    data = FakeDataModule()
    data.batch_size = 8
    config = OptimizerConfig(lr=0.1, lr_scaling="linear")
    trainer = toy_methods.fit(toy_methods.method("simclr", optimizer=config), data, accumulate_grad_batches=4)
    (group,) = trainer.optimizers[0].param_groups
    assert group["initial_lr"] == pytest.approx(0.1 * 32 / 256)
    assert torch.isfinite(trainer.callback_metrics["loss"])

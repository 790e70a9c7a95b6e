"""A second training with the same objects is none of the first one's, which was broken off within a step."""

import csv
import signal

import lightning as L
import pytest
import torch

from amcl_fast.callbacks import (
    Checkpoint,
    Guard,
    Interrupted,
    MetricsFile,
    NonFiniteError,
    OnlineKNN,
    SaveOnSignal,
    Throughput,
)
from tests.helpers.fake_data import FakeDataModule
from tests.helpers.running import Stop, fit, method

CLOCK = ("images_per_second", "wait_share")


class Break(L.Callback):
    """Asks the trainer to stop in the batch before, which is put off, and breaks the training off."""

    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_end(self, trainer, *_):
        done = trainer.fit_loop.total_batch_idx + 1
        trainer.should_stop |= done == self.batch - 1
        if done == self.batch:
            raise Stop


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return [{name: value for name, value in row.items() if name not in CLOCK} for row in csv.DictReader(file)]


def train(folder, module, objects, *, extra=(), **settings):
    checkpoint, guard, *others = objects
    settings = {"accumulate_grad_batches": 4, "log_every_n_steps": 1, "max_epochs": 3, **settings}
    return fit(
        folder,
        module,
        FakeDataModule(steps=8),
        checkpoint=checkpoint,
        guard=guard,
        extra=[*others, *extra],
        logger=MetricsFile(folder),
        **settings,
    )


def new_objects():
    return Checkpoint(), Guard(), OnlineKNN(every_n_epochs=2), Throughput()


# Within the first step; within the second, after one was logged; after an epoch.
@pytest.mark.parametrize("batch", [3, 7, 11])
def test_it_is_as_with_new_objects(tmp_path, batch):
    module, objects = method(), new_objects()
    with pytest.raises(Stop):
        train(tmp_path / "broken", module, objects, extra=[Break(batch)], gradient_clip_val=1.0)
    fresh = method()
    fresh.load_state_dict(module.state_dict())
    (second, old), (expected, new) = (
        (train(tmp_path / name, model, given), given)
        for name, model, given in (("same", module, objects), ("new", fresh, new_objects()))
    )
    assert second.global_step == expected.global_step == 6
    assert rows(tmp_path / "same") == rows(tmp_path / "new") and len(rows(tmp_path / "new")) == 7
    for name, value in module.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name
    for mine, theirs in zip(old, new, strict=True):
        assert mine.state_dict() == theirs.state_dict()


def test_measuring_that_was_cut_short_is_of_that_training(tmp_path):
    knn = OnlineKNN()

    def cut(trainer):
        raise Stop

    knn.between_batches = cut
    with pytest.raises(Stop):
        fit(tmp_path / "cut", extra=[knn])
    assert knn.state_dict()["pending"] == 1
    knn.between_batches = None
    fit(tmp_path / "whole", extra=[knn], logger=MetricsFile(tmp_path / "whole"))
    assert [epoch for epoch, _ in knn.history] == [1, 2]
    assert [row["step"] for row in rows(tmp_path / "whole") if row["knn"]] == ["3", "7"]


def test_a_loss_that_was_not_finite_is_of_that_training(tmp_path):
    module, guard = method(), Guard()
    loss_of_views = module.loss_of_views
    module.loss_of_views = lambda views: loss_of_views(views) * float("nan")
    with pytest.raises(NonFiniteError, match="step 0"):
        fit(tmp_path, module, guard=guard, accumulate_grad_batches=4)
    del module.loss_of_views
    assert fit(tmp_path, module, guard=guard, accumulate_grad_batches=4).global_step == 2


def test_a_signal_has_stopped_that_training(tmp_path):
    class Once(L.Callback):
        def on_train_batch_end(self, *_):
            on_signal.signals.received, stops[:] = stops.pop() if stops else 0, []

    stops = [signal.SIGTERM]
    checkpoint = Checkpoint()
    on_signal = SaveOnSignal(checkpoint)
    extra = [Once(), on_signal]
    with pytest.raises(Interrupted):
        fit(tmp_path, checkpoint=checkpoint, extra=extra)
    assert fit(tmp_path, checkpoint=checkpoint, extra=extra).global_step == 8

import random

import lightning as L
import numpy as np
import pytest
import torch

from amcl_fast.callbacks import Checkpoint
from tests.helpers.fake_data import FakeDataModule
from tests.helpers.running import Stop, fit, method

STEPS = 12  # of three epochs


class Dice(L.Callback):
    """Draws from every generator at each step."""

    def __init__(self):
        self.seen = {}

    def on_train_batch_start(self, trainer, *_):
        draws = (torch.rand(1).item(), np.random.rand(), random.random())  # noqa: NPY002
        self.seen[trainer.global_step] = draws


class Noise(L.Callback):
    """Preparation that draws random numbers, as a baseline's evaluation may."""

    def on_train_start(self, *_):
        torch.rand(5), np.random.rand(5), random.random()  # noqa: NPY002


def seeded(*args, **kwargs):
    random.seed(0), np.random.seed(0)  # noqa: NPY002
    module = method()  # seeds torch
    return fit(*args, module=module, max_epochs=3, **kwargs)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    dice = Dice()
    trainer = seeded(tmp_path_factory.mktemp("whole"), extra=[dice], checkpoint=Checkpoint(every_n_steps=3))
    return trainer.lightning_module.state_dict(), dice.seen


# Checkpoints within the first epoch, at its end, within the second, and within the third.
@pytest.mark.parametrize(("stop", "saved"), [(3, 3), (5, 4), (7, 6), (10, 9)])
def test_goes_on_exactly(tmp_path, uninterrupted, stop, saved):
    weights, draws = uninterrupted
    with pytest.raises(Stop):
        # Callbacks run in order and checkpoints come last: stopped one step later, after the save.
        seeded(tmp_path, extra=[Dice(), Stop.at(stop + 1)], checkpoint=Checkpoint(every_n_steps=3))
    path = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == saved
    torch.manual_seed(1)
    dice = Dice()
    trainer = seeded(tmp_path, extra=[Noise(), dice], checkpoint=Checkpoint(every_n_steps=3), ckpt_path=str(path))
    assert (trainer.global_step, trainer.current_epoch) == (STEPS, 3)
    for name, value in trainer.lightning_module.state_dict().items():
        assert torch.equal(value, weights[name]), name
    # The callback that draws comes after the one that restores, as all of a run's do.
    assert dice.seen == {step: draw for step, draw in draws.items() if step >= saved}


def test_a_finished_run_stays_finished(tmp_path):
    weights = seeded(tmp_path).lightning_module.state_dict()
    again = seeded(tmp_path, ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt")).lightning_module
    assert all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())


def test_of_another_number_of_processes_each_goes_on_with_the_generators_of_one(tmp_path, capsys):
    with pytest.raises(Stop):
        fit(tmp_path, max_epochs=1, extra=[Stop.at(3)], checkpoint=Checkpoint(every_n_steps=2))
    path = tmp_path / "checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    state["exact_resume"]["generators"] *= 2
    torch.save(state, path)
    dice = Dice()
    fit(tmp_path, max_epochs=1, extra=[dice], ckpt_path=str(path), data=FakeDataModule())
    assert "goes on with 1 process(es) instead of 2" in capsys.readouterr().out
    torch.set_rng_state(state["exact_resume"]["generators"][0]["torch"])
    assert dice.seen[state["global_step"]][0] == torch.rand(1).item()

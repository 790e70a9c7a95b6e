import pytest
import torch
from fake_data import FakeDataModule
from running import fit, method

from amcl_fast import AdaptiveTemperature, SimCLRLoss
from amcl_fast.callbacks import Checkpoint, Guard, NonFiniteError


def test_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    with pytest.raises(NonFiniteError, match=rf"loss is not finite.*score='cosine'.*{path}"):
        fit(tmp_path, data=FakeDataModule(nan_at=6), checkpoint=Checkpoint(every_n_steps=1))
    state = torch.load(path, weights_only=True)
    assert state["global_step"] == 6
    assert all(torch.isfinite(value).all() for value in state["state_dict"].values())


def test_without_a_checkpoint_the_error_says_so(tmp_path):
    with pytest.raises(NonFiniteError, match="None had been saved"):
        fit(tmp_path, data=FakeDataModule(nan_at=0))


def collapsed():
    """All temperatures at tau_min: the dot of large features."""
    temperature = AdaptiveTemperature(6, tau_min=0.1, tau_max=1.0)
    with torch.no_grad():
        temperature.phi[2].bias.fill_(5.0)
    return method(criterion=SimCLRLoss(temperature, negatives="topk_softmax", top_k=4, backend="reference"))


def warnings_of(recwarn):
    return [w for w in recwarn if "temperatures have collapsed" in str(w.message)]


def test_collapsed_temperatures_are_warned_of_once(tmp_path, recwarn):
    guard = Guard(window=2)
    fit(tmp_path, collapsed(), guard=guard, max_epochs=3)
    (warning,) = warnings_of(recwarn)
    assert "score='cosine'" in str(warning.message) and "tau_min" in str(warning.message)
    assert guard.collapsed_at == 4


def test_living_and_constant_temperatures_are_not(tmp_path, recwarn):
    constant = SimCLRLoss(0.1, negatives="softmax", backend="reference")
    for module in (method(), method(criterion=constant)):
        fit(tmp_path / str(id(module)), module, guard=Guard(window=1))
    assert not warnings_of(recwarn)


def test_a_window_with_one_living_step_starts_again():
    guard = Guard(window=4)
    dead, alive = {"tau_positive_at_bound": torch.tensor(1.0)}, {"tau_positive_at_bound": torch.tensor(0.5)}
    for step, stats in [(2, dead), (4, alive), (6, dead), (8, dead)]:
        guard._check_temperatures(step, stats)
    assert guard.collapsed_at is None
    with pytest.warns(UserWarning, match="for 4 steps"):
        guard._check_temperatures(10, dead)


def test_the_window_survives_a_resume():
    first, second = Guard(window=4), Guard(window=4)
    dead = {"tau_negative_at_bound": torch.tensor(1.0)}
    first._check_temperatures(2, dead)
    second.load_state_dict(first.state_dict())
    with pytest.warns(UserWarning, match="collapsed"):
        second._check_temperatures(6, dead)


@pytest.mark.parametrize("name", ["every_n_steps", "window"])
def test_bad_settings_are_named(name):
    with pytest.raises(ValueError, match=f"guard.{name}.*0"):
        Guard(**{name: 0})

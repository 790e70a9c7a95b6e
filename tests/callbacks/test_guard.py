import warnings

import pytest
import torch

from amcl_fast import AdaptiveTemperature, SimCLRLoss
from amcl_fast.callbacks import Checkpoint, Guard, NonFiniteError
from tests.helpers.fake_data import FakeDataModule
from tests.helpers.running import fit, method


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
    assert guard.collapsed_at["temperatures"] == 4


def test_living_and_constant_temperatures_are_not(tmp_path, recwarn):
    constant = SimCLRLoss(0.1, negatives="softmax", backend="reference")
    for module in (method(), method(criterion=constant)):
        fit(tmp_path / str(id(module)), module, guard=Guard(window=1))
    assert not warnings_of(recwarn)


def test_projections_that_are_equal_are_warned_of_once(tmp_path, recwarn):
    module = method(criterion=SimCLRLoss(0.1, negatives="topk_softmax", top_k=4, backend="reference"))
    with torch.no_grad():
        module.projector.output.weight.zero_()
    fit(tmp_path, module, guard=Guard(window=2), max_epochs=3)
    (warning,) = (w for w in recwarn if "projections have collapsed" in str(w.message))
    assert "top_k=4" in str(warning.message) and "model.projector.batch_norm" in str(warning.message)


def showing(**stats):
    """A criterion with the statistics of a healthy call, but for these."""
    healthy = {"similarity_positive": 0.8, "similarity_negative": 0.1}
    healthy |= {f"tau_{group}_{name}": 0.5 for group in ("positive", "negative") for name in ("mean", "at_bound")}
    criterion = SimCLRLoss(AdaptiveTemperature(8))
    criterion.last_stats = {name: torch.tensor(value) for name, value in (healthy | stats).items()}
    return criterion


DEAD = {
    "temperatures": {"tau_negative_at_bound": 1.0},
    "projections": {"similarity_positive": 1.0, "similarity_negative": 1.0},
}


@pytest.mark.parametrize("kind", DEAD)
def test_a_window_with_one_living_step_starts_again(kind):
    guard = Guard(window=4)
    dead, alive = showing(**DEAD[kind]), showing()
    for step, criterion in [(2, dead), (4, alive), (6, dead), (8, dead)]:
        guard._check(step, criterion)
    assert guard.collapsed_at == {}
    with pytest.warns(UserWarning, match=f"for 4 steps the {kind} have collapsed"):
        guard._check(10, dead)
    assert guard.collapsed_at == {kind: 10}


def test_each_kind_is_warned_of_once(recwarn):
    guard = Guard(window=1)
    for step in range(1, 6):
        guard._check(step, showing(**DEAD["temperatures"], **DEAD["projections"]))
    assert [str(warning.message).split()[4] for warning in recwarn] == ["projections", "temperatures"]


@pytest.mark.parametrize("kind", DEAD)
def test_the_window_survives_a_resume(kind):
    first, second = Guard(window=4), Guard(window=4)
    first._check(2, showing(**DEAD[kind]))
    second.load_state_dict(first.state_dict())
    with pytest.warns(UserWarning, match="collapsed"):
        second._check(6, showing(**DEAD[kind]))


@pytest.mark.parametrize(("before", "warned"), [(None, {}), (3, {"temperatures": 3})])
def test_checkpoints_with_a_single_step_are_read(before, warned):
    guard = Guard(window=4)
    guard.load_state_dict({"collapsed_at": before, "since": 2})
    assert guard.collapsed_at == warned
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        guard._check(6, showing(**DEAD["temperatures"]))
    assert len(caught) == (not warned)


@pytest.mark.parametrize("name", ["every_n_steps", "window"])
def test_bad_settings_are_named(name):
    with pytest.raises(ValueError, match=f"guard.{name}.*0"):
        Guard(**{name: 0})

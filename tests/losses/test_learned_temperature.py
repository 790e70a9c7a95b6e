"""One learned τ for all pairs: the numbers of a constant τ, and a gradient of its logarithm, on every backend."""

import math
import pickle

import pytest
import torch

from amcl_fast import BarlowTwinsLoss, LearnedTemperature, MoCoLoss, SimCLRLoss, SimSiamLoss, diagnose
from tests.helpers.small_losses import BACKENDS, TAU, D, device_of, inputs_of

FORMS = {
    "dcl": (SimCLRLoss, {"negatives": "softmax"}),
    "nt_xent": (SimCLRLoss, {"negatives": "softmax", "include_positive": True}),
    "hardest": (SimCLRLoss, {"negatives": "topk_softmax", "top_k": 3, "include_positive": True}),
    "moco": (MoCoLoss, {"negatives": "softmax", "include_positive": True}),
    "moco of the hardest": (MoCoLoss, {"negatives": "topk_softmax", "top_k": 3}),
}


def made(form, temperature, backend="reference", dtype=torch.float64):
    cls, settings = FORMS[form]
    return cls(temperature, **settings, backend=backend).to(device_of(backend), dtype)


def given(form, dtype=torch.float64, device="cpu"):
    return [t.to(device, dtype) for t in inputs_of("moco" if form.startswith("moco") else "simclr")]


def call(loss, tensors, more):
    """A call with two views, or `of_views` of three."""
    if not more:
        return loss(*tensors)
    views = [*tensors[:2], tensors[0].flip(0)]
    return loss.of_views(views, views, tensors[2]) if len(tensors) > 2 else loss.of_views(views, targets=[0, 1])


@pytest.mark.parametrize("more", [False, True], ids=["two views", "more views"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_are_those_of_a_constant_and_the_gradient_is_a_difference(backend, form, more):
    dtype = torch.float64 if backend == "reference" else torch.float32
    tolerance = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-6}
    leaves = [t.requires_grad_() for t in given(form, dtype, device_of(backend))[:2]]
    rest = given(form, dtype, device_of(backend))[2:]
    loss = made(form, LearnedTemperature(TAU), backend, dtype)
    tau = float(loss.temperature)
    value, expected = (call(of, [*leaves, *rest], more) for of in (loss, made(form, tau, backend, dtype)))
    torch.testing.assert_close(value, expected, **tolerance)
    *by_rows, found = torch.autograd.grad(value, [*leaves, loss.temperature.log_tau], allow_unused=True)
    for gradient, right in zip(by_rows, torch.autograd.grad(expected, leaves, allow_unused=True), strict=True):
        torch.testing.assert_close(gradient, right, **tolerance)
    step = 1e-5
    low, high = (call(made(form, tau * math.exp(by)), given(form), more).item() for by in (-step, step))
    assert found.item() == pytest.approx((high - low) / (2 * step), rel=1e-7 if dtype == torch.float64 else 1e-4)


def test_statistics_are_of_its_own_range():
    loss = SimCLRLoss(LearnedTemperature(0.5, 0.1, 1.0), negatives="softmax")
    rows = given("nt_xent", torch.float32)
    for tau, at_bound in ((0.5, 0), (0.1, 1), (1.0, 1)):
        with torch.no_grad():
            loss.temperature.log_tau.fill_(math.log(tau))
        loss(*rows)
        stats = {name: value.item() for name, value in loss.last_stats.items()}
        for group in ("positive", "negative"):
            assert stats[f"tau_{group}_mean"] == stats[f"tau_{group}_min"] == pytest.approx(tau, rel=1e-6)
            assert (stats[f"tau_{group}_std"], stats[f"tau_{group}_at_bound"]) == (0, at_bound)
        assert diagnose(loss) == []  # CLIP's stays at an end


def test_log_tau_stays_in_its_range_and_comes_back():
    temperature = LearnedTemperature(0.1, 0.1, 1.0)
    optimizer = torch.optim.SGD(temperature.parameters(), lr=0.5)

    def step(direction):
        optimizer.zero_grad()
        (direction * temperature.tau.log()).backward()
        optimizer.step()
        return temperature.log_tau.item()

    low = temperature.log_tau.item()
    assert [step(1.0), step(1.0)] == [low, low]
    assert step(-1.0) == pytest.approx(low + 0.5)
    over = [step(-1.0) for _ in range(10)][-1]
    assert 0 < over < 0.5 and float(temperature) == 1.0
    assert step(1.0) == pytest.approx(over - 0.5) and float(temperature) < 1


def test_it_learns_what_fits():
    """Positives that are alike and negatives that are not want a low τ, random rows a high one."""
    rows, other = given("nt_xent", torch.float32)
    for pair, falls in (((rows, rows), True), ((rows, other), False)):
        loss = made("nt_xent", LearnedTemperature(TAU), dtype=torch.float32)
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            loss(*pair).backward()
            optimizer.step()
        assert (float(loss.temperature) < TAU) == falls


def test_autocast_and_half_parameters():
    loss = SimCLRLoss(LearnedTemperature(TAU), negatives="softmax")
    rows = given("nt_xent", torch.float32)
    expected = loss(*rows)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(*rows), expected)
    value = loss.to(torch.bfloat16)(*rows)
    value.backward()
    assert value.dtype == torch.float32 and value.item() == pytest.approx(expected.item(), rel=0.02)
    assert loss.temperature.log_tau.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("form", ["nt_xent", "moco of the hardest"])
def test_transforms_and_second_derivatives(form):
    loss, tensors = made(form, LearnedTemperature(TAU)), given(form)
    log_tau = loss.temperature.log_tau

    def of(log_tau, first=tensors[0]):
        return torch.func.functional_call(loss, {"temperature.log_tau": log_tau}, (first, *tensors[1:]))

    (once,) = torch.autograd.grad(loss(*tensors), log_tau, create_graph=True)
    torch.testing.assert_close(torch.func.grad(of)(log_tau), once)
    torch.testing.assert_close(torch.func.jvp(of, (log_tau,), (torch.ones_like(log_tau),))[1], once[0])
    stack = torch.stack([log_tau, log_tau - 0.5])
    torch.testing.assert_close(torch.func.vmap(of)(stack), torch.stack([of(t) for t in stack]))
    (twice,) = torch.autograd.grad(once, log_tau)
    step = 1e-5
    shifted = [torch.func.grad(of)(log_tau + by) for by in (-step, step)]
    torch.testing.assert_close(twice, (shifted[1] - shifted[0]) / (2 * step), rtol=1e-6, atol=1e-9)


def test_compiles_whole_and_has_a_shape_on_meta():
    loss = SimCLRLoss(LearnedTemperature(TAU), negatives="softmax", include_positive=True)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for run in (loss, compiled):
        loss.zero_grad()
        value = run(*given("nt_xent", torch.float32))
        value.backward()
        results.append([value.detach(), loss.temperature.log_tau.grad.clone(), *loss.last_stats.values()])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert loss.to("meta")(*given("nt_xent", device="meta")).shape == ()


def test_state_pickle_and_what_it_shows():
    temperature = LearnedTemperature(0.2)
    assert {name: tuple(t.shape) for name, t in temperature.state_dict().items()} == {"log_tau": (1,)}
    assert float(pickle.loads(pickle.dumps(temperature))) == float(temperature) == pytest.approx(0.2)
    assert repr(temperature) == "LearnedTemperature(tau_min=0.01, tau_max=10.0)"
    rows = torch.ones(2, 3, D), torch.ones(2, 4, D)
    assert torch.equal(temperature(*rows), torch.full((2, 3, 4), float(temperature)))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda t: SimSiamLoss(t), TypeError, "temperature must be a float or an AdaptiveT.*, got LearnedT.*1/τ"),
        (lambda t: BarlowTwinsLoss(t), TypeError, "temperature must be a float or .*, got LearnedT.*: the diagonal"),
        (lambda t: SimCLRLoss(t), ValueError, "negatives must be 'topk_softmax' or 'softmax' with a Learned"),
        (lambda t: MoCoLoss("0.1"), TypeError, "temperature must be a float, an A.* a L.* or a P.*, got '0.1'"),
        (lambda t: LearnedTemperature(0.001), ValueError, "init must be from tau_min=0.01 to tau_max=10.0, got 0.001"),
        (lambda t: LearnedTemperature("0.1"), TypeError, "init must be a number, got '0.1'"),
        (lambda t: LearnedTemperature(tau_min=0.0), ValueError, "tau_min and tau_max must be .*, got tau_min=0.0"),
        (lambda t: LearnedTemperature(1, 2, 1), ValueError, "tau_min and tau_max must be such that 1e-18 <= tau_min <"),
    ],
)  # fmt: skip
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=f"^{message}") as caught:
        make(LearnedTemperature())
    assert "\n" not in str(caught.value)

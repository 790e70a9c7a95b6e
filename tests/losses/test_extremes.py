"""Sizes of rows and temperatures that float32 can hold but not square, and derivatives that a backend does not know."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from amcl_fast import AdaptiveTemperature, SimSiamLoss, ops
from amcl_fast import rows as rows_module
from amcl_fast.losses import barlow_twins
from amcl_fast.rows import bounded, unit
from tests.helpers import literal
from tests.helpers.small_losses import (
    BACKENDS,
    HEADS,
    NAMES,
    NATIVE,
    OF_ANCHORS,
    TAU,
    D,
    N,
    device_of,
    evaluate,
    inputs_of,
    loss_of,
    temperature_of,
)

pytestmark = pytest.mark.slow


def on_backend(name, kind, backend, tensors):
    return evaluate(loss_of(name, kind, backend), [t.float().to(device_of(backend)) for t in tensors])


@pytest.fixture
def exact(monkeypatch):
    """The losses in float64 by the reference, nothing scaled: there 1e38 has a square."""

    def evaluated(name, kind, tensors):
        with monkeypatch.context() as patch:
            for module in (rows_module, barlow_twins):
                patch.setattr(module, "bounded", lambda x: x)
            return evaluate(loss_of(name, kind, "reference", torch.float64), tensors)

    return evaluated


def assert_same_rows(found, expected, vector):
    """Vectors along dimension `vector`, each by its own size: beside one of 1e-20 another of 1e20 may stand."""
    size = expected.abs().amax(vector, keepdim=True)
    # The smallest numbers of float32 have few digits.
    assert ((found - expected).abs() <= 2e-4 * size + 1e-42).all(), (found - expected).abs().max()


# The interpreter is slow: of the kernels, what only they decide.
SIZES = [
    *itertools.product(["reference", *NATIVE], ["constant", "cosine", "dot"], [63, 90, 127, -50, -100]),
    *(("triton", "constant", power) for power in (63, -100)),
    ("triton", "cosine", 127),
]
SIZES = [(name, *of) for name in NAMES for of in SIZES]
SIZES += [(name, backend, kind, power) for name, kind in OF_ANCHORS for backend in ("reference", *NATIVE)
          for power in (90, -50)]  # fmt: skip


@pytest.mark.parametrize(("name", "backend", "kind", "power"), SIZES)
def test_rows_of_any_size(backend, name, kind, power, exact):
    """From 1e-30 to 1.7e38: squares, sums and 1/‖x‖ leave float32; values and gradients are float64's."""
    tensors = inputs_of(name)
    for row, t in itertools.product((1, 3), tensors[: 2 if name == "moco" else None]):
        # One pair of which both are so, and one row alone. Channels, in Barlow Twins.
        if row == 1 or t is tensors[0]:
            (t[:, :, row] if name == "barlow" else t[row]).mul_(2.0**power)
    value, grads = on_backend(name, kind, backend, tensors)
    expected, exact_grads = exact(name, kind, tensors)
    assert abs(value - expected) <= 1e-4 * max(1, abs(expected))
    for i, (found, right) in enumerate(zip(grads, exact_grads, strict=True)):
        if i < len(tensors):
            # Of rows that are shorter than 1e-12 on both sides, φ sees no difference, and rounding is times 1e12.
            noise = 2.0 if power == -100 and kind != "constant" else 0.0
            vector = 0 if name == "barlow" else -1
            if noise:
                assert ((found - right).abs() <= 2e-4 * right.abs().amax(vector, keepdim=True) + noise).all()
            else:
                assert_same_rows(found, right, vector)
        else:
            assert (found - right).norm() <= 2e-4 * right.norm().clamp_min(1e-2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wide_rows_of_the_largest_numbers(backend):
    """More columns than one block of a kernel; their norm is beyond float32 itself."""
    generator = torch.Generator().manual_seed(0)
    p, z = (torch.rand(4, 5000, generator=generator).double() - 0.5 for _ in range(2))
    loss = SimSiamLoss(backend=backend)
    for t, size in ((p, 3.4e38), (z, 3e25)):
        t[1] *= size
        t[2] *= 1 / size
    tensors = [t.float().double() for t in (p, z, p, z)]
    x = tensors[0].clone().requires_grad_()
    expected = -(F.normalize(x, dim=-1) * F.normalize(tensors[1], dim=-1)).sum(-1).mean()
    (right,) = torch.autograd.grad(expected, x)
    value, grads = evaluate(loss, [t.float().to(device_of(backend)) for t in tensors])
    torch.testing.assert_close(value, expected.detach(), rtol=1e-5, atol=1e-7)
    assert_same_rows(grads[0] + grads[2], right, -1)


def test_ordinary_rows_keep_their_bits():
    x = torch.randn(3, 50, 33, generator=torch.Generator().manual_seed(0))
    assert bounded(x) is x
    assert torch.equal(unit(x), F.normalize(x, dim=-1))
    x[0, 0] *= 1e25
    assert torch.equal(bounded(x)[0, 1:], x[0, 1:]) and torch.equal(unit(x)[1:], F.normalize(x, dim=-1)[1:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_of_a_zero_row_is_that_of_normalize(backend):
    """Normalised once, not once more on the way to the positive: 1/1e-12 and not its square."""
    for seed in range(3):
        tensors = inputs_of("nt_xent", seed)
        tensors[0][2] = 0
        x, y = (t.clone().requires_grad_() for t in tensors)
        total = 0.0
        for head in range(HEADS):
            z = F.normalize(torch.cat([x[:, head], y[:, head]]), dim=-1)
            logits = (z @ z.T / TAU).masked_fill(torch.eye(2 * N, dtype=torch.bool), float("-inf"))
            total = total + F.cross_entropy(logits, (torch.arange(2 * N) + N) % (2 * N))
        right = torch.autograd.grad(total, (x, y))
        value, grads = on_backend("nt_xent", "constant", backend, tensors)
        torch.testing.assert_close(value, total.detach(), rtol=1e-5, atol=0)
        assert 1e8 < right[0].abs().max() < 1e12
        for found, expected in zip(grads, right, strict=True):
            assert_same_rows(found, expected, -1)


ZEROS = [
    *itertools.product(["reference", *NATIVE], ["constant", "cosine", "dot"], ["first", "second", "both"]),
    ("triton", "constant", "first"),
    ("triton", "cosine", "both"),
]
ZEROS = [(name, *of) for name in NAMES for of in ZEROS]
ZEROS += [(name, backend, kind, "both") for name, kind in OF_ANCHORS for backend in ("reference", *NATIVE)]


@pytest.mark.parametrize(("name", "backend", "kind", "where"), ZEROS)
def test_zero_rows(backend, name, kind, where, exact):
    tensors = inputs_of(name)
    for i, t in enumerate(tensors[: 2 if name == "moco" else None]):
        if where == "both" or i % 2 == (where == "second"):
            (t[:, :, 2] if name == "barlow" else t[2]).zero_()
    value, grads = on_backend(name, kind, backend, tensors)
    expected, exact_grads = exact(name, kind, tensors)
    assert abs(value - expected) <= 1e-4 * max(1, abs(expected))
    for found, right in zip(grads[: len(tensors)], exact_grads[: len(tensors)], strict=True):
        # Where nothing but rounding is left of the slope by a direction, that is what 1e12 multiplies.
        size = right.abs().amax(0 if name == "barlow" else -1, keepdim=True)
        assert ((found - right).abs() <= 2e-4 * size + 20).all()
        assert found.abs().max() < 2e12 / TAU


@pytest.mark.parametrize("value", [0.1, 3.0, 1e-30, 1e30, 3e38])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_constant_channel_correlates_with_nothing(backend, value):
    """As a channel of zeros: what rounding leaves in a mean is no deviation."""
    (z1, z2) = inputs_of("barlow")
    z1, z2 = (torch.cat([z, z.flip(0)[:5]]) for z in (z1, z2))  # 11 images: a sum that rounds
    for z in (z1, z2):
        z[:, :, 3] = 0
    expected = evaluate(loss_of("barlow", backend="reference", dtype=torch.float64), (z1, z2))[0]
    for z in (z1, z2):
        z[:, :, 3] = torch.tensor(value, dtype=torch.float32)
    found, grads = on_backend("barlow", "constant", backend, (z1, z2))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("backend", ["reference", *NATIVE])
def test_barlow_twins_of_huge_channels_is_the_formula(backend):
    """φ reads them raw."""
    tensors = inputs_of("barlow")
    for t in tensors:
        t[:, :, 1] *= 2.0**100
    temperature = temperature_of("barlow", "cosine", torch.float64)
    expected = literal.barlow(*(t.numpy() for t in tensors), literal.adaptive_tau(temperature), 5e-3, 1e-6)
    value, _ = on_backend("barlow", "cosine", backend, tensors)
    assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["constant", "adaptive"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ["reference", *NATIVE])
def test_the_smallest_temperatures(backend, name, kind):
    """At both ends of what is accepted, value and gradient are those of float64."""

    def loss(dtype, backend):
        small = 1e-12 if name == "barlow" else 1e-18
        if kind == "constant":
            return loss_of(name, backend=backend, temperature=small)
        torch.manual_seed(0)
        temperature = AdaptiveTemperature(N if name == "barlow" else D, 8, small, 1.0, score="cosine").to(dtype)
        with torch.no_grad():
            temperature.offset.fill_(-15)  # r > 40: τ is at its end, and φ's slopes are 1e-17/τ²
        return loss_of(name, backend=backend, temperature=temperature)

    tensors = inputs_of(name)
    value, grads = evaluate(loss(torch.float32, backend), [t.float() for t in tensors])
    expected, exact_grads = evaluate(loss(torch.float64, "reference"), tensors)
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    for found, right in zip(grads, exact_grads, strict=True):
        assert (found - right).norm() <= 1e-3 * right.norm()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ["reference", *NATIVE])
def test_the_largest_temperature(backend, name):
    tensors = inputs_of(name)
    loss = loss_of(name, backend=backend, temperature=3.4e38)
    value, grads = evaluate(loss, [t.float() for t in tensors])
    expected, _ = evaluate(loss_of(name, backend="reference", temperature=3.4e38), tensors)
    assert value.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-37)
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize(
    ("dtype", "smallest"), [(torch.float32, 1.1754944e-38), (torch.float64, 2.3e-308)], ids=["float32", "float64"]
)
def test_operators_refuse_what_their_dtype_cannot_hold(dtype, smallest):
    x = torch.randn(1, 3, 4, dtype=dtype)
    settings = {"weight": 1.0, "beta": 0.0, "backend": "auto"}
    rows, _ = ops.align(x, x, None, None, None, tau_min=smallest, tau_max=smallest, **settings)
    assert rows.isfinite().all()
    for tau in (smallest / 2, torch.finfo(dtype).max * 2):
        with pytest.raises(ValueError, match=r"tau_min and tau_max must be in order from .* got tau_min="):
            ops.align(x, x, None, None, None, tau_min=tau, tau_max=tau, **settings)

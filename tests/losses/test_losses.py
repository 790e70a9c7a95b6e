"""The losses against pair-by-pair formulas, their gradients, their edge cases and their errors."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from amcl_fast import AdaptiveTemperature, BarlowTwinsLoss, MoCoLoss, SimCLRLoss, SimSiamLoss
from tests.helpers import literal

FORMS = [
    ("topk_mean", 5, False),
    ("topk_mean", 1, False),
    ("topk_softmax", 5, False),
    ("topk_softmax", 1, False),
    ("topk_softmax", 5, True),
    ("topk_softmax", 10_000, False),
    ("softmax", None, False),
    ("softmax", None, True),
]
TEMPERATURES = ["constant", "dot", "cosine"]


def rand(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def temperature_of(kind, dim, seed=0, hidden=8):
    """(temperature, τ function for the pair-by-pair formulas, β that these should use)"""
    if kind == "constant":
        return 0.3, lambda x, y: 0.3, 0.0
    torch.manual_seed(seed)
    module = AdaptiveTemperature(dim, hidden, 0.05, 2.0, score=kind).double()
    with torch.no_grad():
        for p in module.phi.parameters():
            p.mul_(2)
        if module.offset is not None:
            module.offset.fill_(0.25)
    return module, literal.adaptive_tau(module), 0.02


@pytest.fixture(params=["reference", "auto"])
def backend(request):
    return request.param


@pytest.mark.parametrize(("form", "top_k", "include_positive"), FORMS)
@pytest.mark.parametrize("kind", TEMPERATURES)
@pytest.mark.parametrize(("n", "heads"), [(7, 3), (2, 1)])
def test_simclr_is_the_formula(kind, form, top_k, include_positive, n, heads, backend):
    temperature, tau, beta = temperature_of(kind, 12)
    loss = SimCLRLoss(
        temperature, negatives=form, top_k=top_k, beta=0.02, include_positive=include_positive, backend=backend
    )
    z1, z2 = rand(n, heads, 12), rand(n, heads, 12, seed=1)
    expected = literal.simclr(z1.numpy(), z2.numpy(), tau, form, top_k, beta, include_positive)
    assert loss(z1, z2).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("form", "top_k", "include_positive"), FORMS)
@pytest.mark.parametrize("kind", TEMPERATURES)
def test_moco_is_the_formula(kind, form, top_k, include_positive, backend):
    temperature, tau, beta = temperature_of(kind, 12)
    loss = MoCoLoss(
        temperature, negatives=form, top_k=top_k, beta=0.02, include_positive=include_positive, backend=backend
    )
    q, k, queue = rand(5, 2, 12), rand(5, 2, 12, seed=1), F.normalize(rand(2, 12, 33, seed=2), dim=1)
    expected = literal.moco(q.numpy(), k.numpy(), queue.numpy(), tau, form, top_k, beta, include_positive)
    assert loss(q, k, queue).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("kind", TEMPERATURES)
def test_simsiam_is_the_formula(kind, backend):
    temperature, tau, beta = temperature_of(kind, 12)
    p1, z2, p2, z1 = (rand(5, 3, 12, seed=s) for s in range(4))
    expected = literal.simsiam(*(t.numpy() for t in (p1, z2, p2, z1)), tau, beta)
    loss = SimSiamLoss(temperature, beta=0.02, backend=backend)
    assert loss(p1, z2, p2, z1).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("kind", TEMPERATURES)
def test_barlow_is_the_formula(kind, backend):
    temperature, tau, beta = temperature_of(kind, 9)
    z1, z2 = rand(9, 2, 6), rand(9, 2, 6, seed=1)
    expected = literal.barlow(z1.numpy(), z2.numpy(), tau, 5e-3, beta)
    loss = BarlowTwinsLoss(temperature, beta=0.02, backend=backend)
    # 1e-7: the standard deviation's + 1e-9 is not in the formula.
    assert loss(z1, z2).item() == pytest.approx(expected, rel=1e-7)


def parameters_of(temperature):
    return tuple(temperature.parameters()) if isinstance(temperature, AdaptiveTemperature) else ()


def gradcheck(loss, differentiable, constants=()):
    """gradcheck of inputs and of φ's parameters, which it perturbs in place."""
    inputs = tuple(t.requires_grad_() for t in differentiable)
    parameters = parameters_of(loss.temperature)
    assert torch.autograd.gradcheck(
        lambda *values: loss(*values[: len(inputs)], *constants), inputs + parameters, atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("kind", TEMPERATURES)
@pytest.mark.parametrize(("form", "top_k", "include_positive"), [f for f in FORMS if f[1] != 10_000])
def test_gradcheck_simclr(kind, form, top_k, include_positive, backend):
    temperature, _, _ = temperature_of(kind, 4, hidden=3)
    loss = SimCLRLoss(
        temperature, negatives=form, top_k=top_k, beta=0.02, include_positive=include_positive, backend=backend
    )
    gradcheck(loss, (rand(4, 2, 4), rand(4, 2, 4, seed=1)))


@pytest.mark.parametrize("kind", TEMPERATURES)
@pytest.mark.parametrize("form", ["topk_mean", "topk_softmax", "softmax"])
def test_gradcheck_moco(kind, form, backend):
    temperature, _, _ = temperature_of(kind, 4, hidden=3)
    loss = MoCoLoss(temperature, negatives=form, top_k=3, beta=0.02, backend=backend)
    gradcheck(loss, (rand(3, 2, 4),), (rand(3, 2, 4, seed=1), F.normalize(rand(2, 4, 9, seed=2), dim=1)))


@pytest.mark.parametrize("kind", TEMPERATURES)
def test_gradcheck_simsiam(kind, backend):
    temperature, _, _ = temperature_of(kind, 4, hidden=3)
    loss = SimSiamLoss(temperature, beta=0.02, backend=backend)
    z1, z2 = rand(3, 2, 4, seed=2), rand(3, 2, 4, seed=3)
    inputs = tuple(rand(3, 2, 4, seed=s).requires_grad_() for s in range(2))
    # φ's weights are the remaining inputs, as above; the projections stand between the predictions.
    assert torch.autograd.gradcheck(
        lambda p1, p2, *_: loss(p1, z2, p2, z1), inputs + parameters_of(temperature), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("kind", TEMPERATURES)
def test_gradcheck_barlow(kind, backend):
    temperature, _, _ = temperature_of(kind, 6)
    loss = BarlowTwinsLoss(temperature, beta=0.02, backend=backend)
    gradcheck(loss, (rand(6, 2, 4), rand(6, 2, 4, seed=1)))


def test_stop_gradients():
    q, k, queue = rand(4, 8), rand(4, 8, seed=1), F.normalize(rand(8, 9, seed=2), dim=0)
    p1, z2, p2, z1 = (rand(4, 8, seed=s) for s in range(4))
    for t in (q, k, queue, p1, z2, p2, z1):
        t.requires_grad_()
    MoCoLoss(0.1, top_k=3)(q, k, queue).backward()
    assert q.grad is not None and k.grad is None and queue.grad is None
    SimSiamLoss()(p1, z2, p2, z1).backward()
    assert p1.grad is not None and p2.grad is not None and z1.grad is None and z2.grad is None


def test_ntxent_is_cross_entropy():
    z1, z2 = rand(9, 16), rand(9, 16, seed=1)
    z = F.normalize(torch.cat([z1, z2]), dim=-1)
    logits = (z @ z.T / 0.5).fill_diagonal_(-math.inf)
    expected = F.cross_entropy(logits, (torch.arange(18) + 9) % 18)
    found = SimCLRLoss(0.5, negatives="softmax", include_positive=True)(z1, z2)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_original_simsiam_and_barlow_are_the_defaults():
    p1, z2, p2, z1 = (rand(6, 16, seed=s) for s in range(4))
    cosine = F.cosine_similarity
    expected = -(cosine(p1, z2).mean() + cosine(p2, z1).mean()) / 2
    torch.testing.assert_close(SimSiamLoss()(p1, z2, p2, z1), expected, rtol=1e-12, atol=0)
    x, y = ((z - z.mean(0)) / z.std(0) for z in (z1, z2))
    c = x.T @ y / 6
    off = c.square().sum() - c.diagonal().square().sum()
    expected = (1 - c.diagonal()).square().sum() + 5e-3 * off
    torch.testing.assert_close(BarlowTwinsLoss()(z1, z2), expected, rtol=1e-7, atol=0)


def test_two_dimensions_mean_one_head(backend):
    temperature, _, _ = temperature_of("dot", 8)
    loss = SimCLRLoss(temperature, top_k=3, backend=backend)
    z1, z2 = rand(5, 8), rand(5, 8, seed=1)
    assert torch.equal(loss(z1, z2), loss(z1[:, None], z2[:, None]))
    queue = F.normalize(rand(8, 11, seed=2), dim=0)
    moco = MoCoLoss(temperature, top_k=3, backend=backend)
    assert torch.equal(moco(z1, z2, queue), moco(z1[:, None], z2[:, None], queue[None]))


def test_top_k_beyond_the_negatives_takes_all(backend):
    z1, z2 = rand(6, 2, 8), rand(6, 2, 8, seed=1)
    all_of_them = SimCLRLoss(0.2, negatives="softmax", backend=backend)(z1, z2)
    found = SimCLRLoss(0.2, negatives="topk_softmax", top_k=500, backend=backend)(z1, z2)
    torch.testing.assert_close(found, all_of_them)
    exact = SimCLRLoss(0.2, negatives="topk_softmax", top_k=10, backend=backend)(z1, z2)
    torch.testing.assert_close(exact, all_of_them)


def test_ties_take_the_lowest_column(backend):
    """Three equal candidates, κ = 2: gradient reaches the first two only."""
    q = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    queue = torch.tensor([[0.0, 0.8, -1.0, 0.8, 0.8], [1.0, 0.6, 0.0, 0.6, 0.6]], dtype=torch.float64)
    from amcl_fast import ops

    candidates = queue.T.clone()[None].requires_grad_()
    rows, _ = ops.contrast(
        q[:1][None], candidates, None, None, None, None,
        tau_min=0.5, tau_max=0.5, negatives="topk_mean", top_k=2, beta=0.0, backend=backend,
    )  # fmt: skip
    rows.sum().backward()
    touched = candidates.grad[0].abs().sum(-1) > 0
    assert touched.tolist() == [False, True, False, True, False]


def test_duplicated_images_repeat_bit_for_bit(backend):
    """Every row twice: ties everywhere, and the result is that of the pair-by-pair formula."""
    half1, half2 = rand(4, 2, 8), rand(4, 2, 8, seed=1)
    z1, z2 = torch.cat([half1, half1]), torch.cat([half2, half2])
    temperature, tau, beta = temperature_of("dot", 8)
    loss = SimCLRLoss(temperature, top_k=5, beta=0.02, backend=backend)
    first, second = loss(z1, z2), loss(z1, z2)
    assert torch.equal(first, second)
    expected = literal.simclr(z1.numpy(), z2.numpy(), tau, "topk_mean", 5, beta, False)
    assert first.item() == pytest.approx(expected, rel=1e-10)


def all_losses(temperature_for, backend="auto"):
    """{name: (loss, number of inputs)} over all four frameworks; widths 16 and batch 8."""
    return {
        "simclr": (SimCLRLoss(temperature_for(16), top_k=5, backend=backend), 2),
        "simclr_softmax": (SimCLRLoss(temperature_for(16), negatives="softmax", backend=backend), 2),
        "simsiam": (SimSiamLoss(temperature_for(16), backend=backend), 4),
        "barlow": (BarlowTwinsLoss(temperature_for(8), backend=backend), 2),
    }


@pytest.mark.parametrize("name", ["simclr", "simclr_softmax", "simsiam", "barlow"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes(name, dtype, backend):
    """Half-precision inputs give the float32 loss of those very numbers, and gradients in their own dtype."""
    torch.manual_seed(0)
    loss, count = all_losses(lambda dim: AdaptiveTemperature(dim, 8, 0.1, 1.0), backend)[name]
    inputs = [rand(8, 3, 16, seed=s).to(dtype).requires_grad_() for s in range(count)]
    result = loss(*inputs)
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    result.backward()
    assert inputs[0].grad.dtype == dtype and inputs[0].grad.isfinite().all()
    exact = loss(*(t.detach().double() for t in inputs))
    assert result.item() == pytest.approx(exact.item(), rel=2e-5)


def test_autocast_does_not_reach_the_loss(backend):
    loss = SimCLRLoss(AdaptiveTemperature(16, 8, 1e-3, 2.0), top_k=5, backend=backend)
    z1, z2 = rand(8, 3, 16, dtype=torch.float32), rand(8, 3, 16, dtype=torch.float32, seed=1)
    plain = loss(z1, z2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(z1, z2), plain)


def test_strides_do_not_matter(backend):
    loss = MoCoLoss(0.2, negatives="topk_softmax", top_k=4, backend=backend)
    q, k, queue = rand(6, 2, 8), rand(6, 2, 8, seed=1), F.normalize(rand(2, 8, 20, seed=2), dim=1)
    plain = loss(q, k, queue)
    strided = loss(
        q.mT.contiguous().mT, torch.stack([k, k], -1)[..., 0], queue.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    )
    torch.testing.assert_close(strided, plain, rtol=1e-12, atol=0)


def test_last_stats_describe_the_selected_set(backend):
    torch.manual_seed(0)
    temperature = AdaptiveTemperature(16, 8, 0.1, 1.0, score="cosine").double()
    loss = SimCLRLoss(temperature, top_k=3, backend=backend)
    z1, z2 = rand(6, 2, 16), rand(6, 2, 16, seed=1)
    loss(z1.requires_grad_(), z2)
    stats = loss.last_stats
    z = F.normalize(torch.cat([z1, z2]).detach().transpose(0, 1), dim=-1)
    s, tau = z @ z.mT, temperature(z, z).detach()
    own = torch.arange(12)
    partner = (own + 6) % 12
    torch.testing.assert_close(stats["tau_positive_mean"], tau[:, own, partner].mean())
    torch.testing.assert_close(stats["tau_positive_min"], tau[:, own, partner].min())
    torch.testing.assert_close(stats["similarity_positive"], s[:, own, partner].mean())
    s[:, own, own] = s[:, own, partner] = -2
    values, columns = s.topk(3)
    chosen = tau.gather(-1, columns)
    torch.testing.assert_close(stats["similarity_negative"], values.mean())
    torch.testing.assert_close(stats["tau_negative_mean"], chosen.mean())
    torch.testing.assert_close(stats["tau_negative_std"], chosen.std(correction=0))
    torch.testing.assert_close(stats["tau_negative_min"], chosen.min())
    assert all(v.dim() == 0 and not v.requires_grad for v in stats.values())


def test_collapsed_temperatures_show_in_last_stats(backend):
    temperature = AdaptiveTemperature(16, 8)
    with torch.no_grad():
        temperature.phi[2].bias.fill_(3.0)  # r = φ·φ ≈ 16·9: σ(−r) is 0
    loss = SimCLRLoss(temperature, top_k=3, backend=backend)
    loss(rand(6, 16, dtype=torch.float32), rand(6, 16, dtype=torch.float32, seed=1))
    assert float(loss.last_stats["tau_positive_at_bound"]) == 1
    assert float(loss.last_stats["tau_negative_at_bound"]) == 1
    assert float(loss.last_stats["tau_positive_min"]) == pytest.approx(1e-5, rel=1e-3)


def test_extreme_temperatures_stay_exact(backend):
    """τ at 1e-5 puts s/τ at 1e5: log-sum-exp must not overflow."""
    temperature = AdaptiveTemperature(16, 8).double()
    with torch.no_grad():
        temperature.phi[2].bias.fill_(3.0)
    z1, z2 = rand(5, 1, 16), rand(5, 1, 16, seed=1)
    loss = SimCLRLoss(temperature, negatives="softmax", beta=1e-4, backend=backend)
    expected = literal.simclr(z1.numpy(), z2.numpy(), literal.adaptive_tau(temperature), "softmax", None, 1e-4, False)
    assert loss(z1, z2).item() == pytest.approx(expected, rel=1e-9)


def test_a_zero_row_is_finite(backend):
    z1, z2 = rand(5, 2, 16), rand(5, 2, 16, seed=1)
    z1[0] = 0
    z1.requires_grad_()
    loss = SimCLRLoss(AdaptiveTemperature(16, 8, 0.1, 1.0).double(), top_k=3, backend=backend)(z1, z2)
    loss.backward()
    assert loss.isfinite() and z1.grad.isfinite().all()


def test_phi_runs_once_per_row():
    temperature = AdaptiveTemperature(16, 8)
    rows = []
    temperature.phi.register_forward_hook(lambda _, args, __: rows.append(args[0].shape[:-1].numel()))
    SimCLRLoss(temperature, top_k=3)(rand(6, 2, 16, dtype=torch.float32), rand(6, 2, 16, dtype=torch.float32))
    assert sum(rows) == 2 * 6 * 2


def test_temperature_of_pairs():
    temperature, tau, _ = temperature_of("cosine", 8)
    x, y = F.normalize(rand(3, 8), dim=-1), F.normalize(rand(4, 8, seed=1), dim=-1)
    expected = np.array([[tau(a, b) for b in y.numpy()] for a in x.numpy()])
    np.testing.assert_allclose(temperature(x, y).detach().numpy(), expected, rtol=1e-10)

"""Losses on inputs that nobody hopes for: the right number, or an error that names the argument."""

import functools
import itertools
import random

import pytest
import torch

from amcl_fast import (
    AdaptiveTemperature,
    BarlowTwinsLoss,
    MoCoLoss,
    PerplexityTemperature,
    SimCLRLoss,
    SimSiamLoss,
    capabilities,
)

BACKENDS = ["reference"] + (["native"] if capabilities.native_status().available else [])
NAMES = {
    "simclr": ("z1", "z2"),
    "infonce": ("z1", "z2"),
    "moco": ("q", "k", "queue"),
    "simsiam": ("p1", "z2", "p2", "z1"),
    "barlow": ("z1", "z2"),
}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 2e-4, torch.float16: 2e-4}


def loss_of(name, n, d, adaptive, backend, dtype):
    torch.manual_seed(0)
    # Like φ in a half-precision model, except float64: the oracle's.
    width = n if name == "barlow" else d
    temperature = AdaptiveTemperature(max(width, 1), 8, 0.1, 1.0, score="cosine") if adaptive else 0.5
    if adaptive == "perplexity":
        temperature = PerplexityTemperature(0.5, 0.6, 0.1, 1.0)
    if adaptive == "row":
        temperature = AdaptiveTemperature(d, 8, 0.1, 1.0, share="row")
    if adaptive and dtype == torch.float64:
        temperature = temperature.double()
    settings = {"backend": backend}
    if name == "simclr":
        return SimCLRLoss(temperature, top_k=3, **settings)
    if name == "infonce":
        return SimCLRLoss(temperature, negatives="softmax", include_positive=True, **settings)
    if name == "moco":
        return MoCoLoss(temperature, negatives="topk_softmax", top_k=3, include_positive=True, **settings)
    return (SimSiamLoss if name == "simsiam" else BarlowTwinsLoss)(temperature, **settings)


def inputs_of(name, n, heads, d, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(n, heads, d, generator=generator, dtype=torch.float64) for _ in NAMES[name]]
    if name == "moco":
        queue = torch.randn(heads, d, 20, generator=generator, dtype=torch.float64)
        tensors[2] = torch.nn.functional.normalize(queue, dim=1)
    return [t.to(dtype) for t in tensors]


ADAPTIVE = [(name, adaptive) for name in NAMES for adaptive in (False, True)]
ADAPTIVE += [(name, kind) for name in ("simclr", "infonce", "moco") for kind in ("perplexity", "row")]


LAYOUTS = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.transpose(0, 2).contiguous().transpose(0, 2),
    "every second row": lambda t: torch.stack([t, torch.full_like(t, float("nan"))], dim=1).flatten(0, 1)[::2],
    "part of wider rows": lambda t: torch.cat([torch.full_like(t, float("nan")), t], dim=-1)[..., t.shape[-1] :],
    "offset": lambda t: torch.cat([torch.full_like(t[:1], float("nan")), t])[1:],
}


def evaluate(loss, tensors):
    leaves = [t.detach().requires_grad_() for t in tensors]
    value = loss(*leaves)
    wanted = [*leaves, *loss.parameters()]
    return value.detach(), torch.autograd.grad(value, wanted, allow_unused=True)


@functools.cache
def exact_of(name, n, heads, d, dtype, adaptive):
    """The float64 reference of inputs in a dtype."""
    tensors = inputs_of(name, n, heads, d, dtype, seed=n * d)
    return evaluate(loss_of(name, n, d, adaptive, "reference", torch.float64), [t.double() for t in tensors])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_shapes_dtypes_and_strides(name, backend):
    """Against the contiguous float64 reference, on the values after rounding to the dtype."""
    cases = list(itertools.product((2, 3, 9), (1, 3), (1, 2, 7, 33), TOLERANCE, LAYOUTS, (False, True)))
    for n, heads, d, dtype, layout, adaptive in random.Random(0).sample(cases, 150):
        if name == "barlow" and n == 2:
            continue  # two standardised values are ±0.7 whatever the input, so the gradient is nothing but rounding
        case = f"N={n} C={heads} d={d} {dtype} {layout} adaptive={adaptive}"
        tensors = inputs_of(name, n, heads, d, dtype, seed=n * d)
        exact = exact_of(name, n, heads, d, dtype, adaptive)
        found = evaluate(loss_of(name, n, d, adaptive, backend, dtype), [LAYOUTS[layout](t) for t in tensors])
        assert found[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32), case
        assert abs(found[0] - exact[0]) <= TOLERANCE[dtype] * max(1, abs(exact[0])), case
        for a, b in zip(found[1], exact[1], strict=True):
            assert (a is None) == (b is None), case
            if a is not None:
                # Gradients come in the dtype of their input.
                rounding = {torch.bfloat16: 2**-7, torch.float16: 2**-9}.get(a.dtype, 0.0)
                allowed = (rounding + 20 * TOLERANCE[dtype]) * b.abs().max().clamp_min(1)
                assert (a.double() - b).abs().max() <= allowed, case


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "adaptive"), ADAPTIVE)
def test_what_is_not_finite_is_named(name, adaptive, backend):
    loss = loss_of(name, 6, 8, adaptive, backend, torch.float32)
    for i, argument in enumerate(NAMES[name]):
        for value in (float("nan"), float("inf"), float("-inf")):
            tensors = inputs_of(name, 6, 2, 8, torch.float32, seed=0)
            tensors[i][1, 1, 2] = value
            with pytest.raises(ValueError, match=f"^{argument} must be finite, got 1 of {tensors[i].numel()} values"):
                loss(*tensors)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [0, 1])
def test_too_few_images(name, n, backend):
    loss = loss_of(name, n, 4, False, backend, torch.float32)
    with pytest.raises(ValueError, match=f"{NAMES[name][0]} must have a batch of N ≥ 2 rows, got {n}"):
        loss(*inputs_of(name, n, 1, 4, torch.float32, seed=0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("what", "name", "adaptive"),
    [
        (what, *of)
        for what, of in itertools.product(("zero rows", "all zero", "all equal", "huge", "tiny"), ADAPTIVE)
        # Channels without any spread have a test of their own below.
        if not (of[0] == "barlow" and what.startswith("all"))
    ],
)
def test_degenerate_projections(what, name, adaptive, backend):
    tensors = inputs_of(name, 6, 2, 8, torch.float32, seed=0)
    for t in tensors[: 2 if name == "moco" else None]:
        if what == "zero rows":
            t[1:3] = 0
        elif what == "all zero":
            t.zero_()
        elif what == "all equal":
            t[:] = t[0, 0].clone()
        else:
            t *= {"huge": 1e15, "tiny": 1e-8}[what]
    exact = loss_of(name, 6, 8, adaptive, "reference", torch.float64)(*(t.double() for t in tensors))
    value, grads = evaluate(loss_of(name, 6, 8, adaptive, backend, torch.float32), tensors)
    assert abs(value - exact) <= 1e-3 * max(1, abs(exact))
    assert all(torch.isfinite(g).all() for g in grads if g is not None)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("adaptive", [False, True], ids=["constant", "adaptive"])
def test_barlow_twins_of_constant_channels(adaptive, backend):
    """A channel that is the same for all images correlates with nothing: 𝒞 = 0, and no gradient of NaN."""
    z1, z2 = inputs_of("barlow", 6, 1, 4, torch.float32, seed=0)
    z1[:, :, 1] = 3.0
    value, grads = evaluate(loss_of("barlow", 6, 4, adaptive, backend, torch.float32), [z1, z2])
    exact = loss_of("barlow", 6, 4, adaptive, "reference", torch.float64)(z1.double(), z2.double())
    assert abs(value - exact) <= 1e-3 * max(1, abs(exact))
    assert all(torch.isfinite(g).all() for g in grads if g is not None)

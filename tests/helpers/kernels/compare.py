"""Triton operators against the float64 reference, with the error of same-dtype PyTorch as the yardstick."""

import torch

from amcl_fast import reference
from amcl_fast.ops import triton as backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Smallest error that counts, relative to the norm of what is compared.
FLOOR = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def evaluate(operator, tensors, settings, weights=None):
    """Rows, statistics and the gradient of every floating tensor, in one flat dict."""
    leaves = [t.detach().clone().requires_grad_() if t is not None and t.is_floating_point() else t for t in tensors]
    rows, *stats = operator(*leaves, **settings)
    if weights is None:
        # Unequal weights, or errors that cancel in a mean stay hidden.
        weights = torch.linspace(0.5, 1.5, rows.numel(), dtype=torch.float64).reshape(rows.shape)
    (rows * weights.to(rows)).sum().backward()
    results = {"rows": rows.detach()}
    for i, group in enumerate(stats):
        results |= {f"{key}_{i}": value for key, value in group.items()}
    results |= {f"gradient_{i}": t.grad for i, t in enumerate(leaves) if t is not None and t.is_floating_point()}
    return results


def relative_error(found, expected):
    difference = (found.double() - expected.double()).norm()
    return (difference / expected.double().norm().clamp_min(1e-30)).item()


def check(name, tensors, settings, dtype=torch.float32, floor=None, wrap=lambda operator: operator):
    """Compare every result of operator `name`; `tensors` are float64, rounded to `dtype` first.

    `wrap` makes of an operator, ours or the reference's, what takes these tensors.
    """
    floor = FLOOR[dtype] if floor is None else floor
    rounded = [None if t is None else t.to(DEVICE, dtype if t.is_floating_point() else None) for t in tensors]
    found = evaluate(wrap(getattr(backend, name)), rounded, settings)
    exact = [t.double() if t is not None and t.is_floating_point() else t for t in rounded]
    expected = evaluate(wrap(getattr(reference, name)), exact, settings)
    same = evaluate(wrap(getattr(reference, name)), rounded, settings)
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert torch.isfinite(value).all(), key
        assert value.shape == expected[key].shape, key
        allowed = 3 * relative_error(same[key], expected[key]) + floor
        error = relative_error(value, expected[key])
        assert error <= allowed, f"{key}: relative error {error:.2e}, allowed {allowed:.2e}"
    for key, value in evaluate(wrap(getattr(backend, name)), rounded, settings).items():
        assert torch.equal(value, found[key]), f"{key} differs between two runs"

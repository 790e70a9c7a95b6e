"""What a backend counts as "at a bound" is the reference's `BOUND_SHARE`, to a hundredth of it."""

import math

import pytest
import torch

from amcl_fast import capabilities, ops, reference

RANGE = {"tau_min": 0.5, "tau_max": 2.5, "beta": 0.1}
# Shares of the range between τ and its nearer end.
SHARES = [reference.BOUND_SHARE * factor for factor in (0.5, 0.99, 1.01, 2.0)]
SHARES += [1 - share for share in SHARES] + [0.5, 0.4]
AT_BOUND = 4 / len(SHARES)


def scores():
    """r with σ(−r) = each of SHARES, as φ of one side; 1 is that of the other."""
    return torch.tensor([math.log((1 - share) / share) for share in SHARES])


@pytest.fixture(params=["reference", "native", "triton"])
def backend(request):
    if request.param == "native" and not capabilities.native_status().available:
        pytest.skip(capabilities.native_status().reason)
    return request.param


@pytest.fixture
def device(backend):
    return "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"


def test_align(backend, device):
    phi = scores()[None, :, None].to(device)
    x = torch.ones(*phi.shape[:2], 4, device=device)
    _, stats = ops.align(x, x, phi, torch.ones_like(phi), None, **RANGE, weight=0.5, backend=backend)
    assert stats["tau_at_bound"].item() == pytest.approx(AT_BOUND)


@pytest.mark.parametrize("form", [("softmax", None), ("topk_softmax", len(SHARES)), ("topk_mean", len(SHARES) - 1)])
def test_contrast(form, backend, device):
    phi = scores()[None, :, None].to(device)
    candidates = torch.ones(*phi.shape[:2], 4, device=device)
    # The last one, whose τ is inside its range, is the least similar.
    candidates[:, -1] = 0.5
    settings = RANGE | dict(zip(("negatives", "top_k"), form, strict=True))
    anchors, one = candidates[:, :1], torch.ones_like(phi)[:, :1]
    _, stats = ops.contrast(anchors, candidates, one, phi, None, None, **settings, backend=backend)
    chosen = form[1] or len(SHARES)
    assert stats["tau_at_bound"].item() == pytest.approx(4 / chosen)


def test_decorrelate(backend, device):
    phi = scores()[None, :, None].to(device)
    x = torch.randn(*phi.shape[:2], 8, generator=torch.Generator().manual_seed(0)).to(device)
    _, on, off = ops.decorrelate(x, x, phi, torch.ones_like(phi), None, **RANGE, lambd=0.1, backend=backend)
    assert on["tau_at_bound"].item() == pytest.approx(AT_BOUND)
    assert off["tau_at_bound"].item() == pytest.approx(AT_BOUND)

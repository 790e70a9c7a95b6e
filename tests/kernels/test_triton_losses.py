"""The losses on the Triton backend in mixed precision: products in half precision, all else in float32."""

from contextlib import contextmanager

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from triton.runtime import interpreter

from amcl_fast import (
    AdaptiveTemperature,
    BarlowTwinsLoss,
    MoCoLoss,
    PerplexityTemperature,
    SimCLRLoss,
    SimSiamLoss,
)
from amcl_fast.losses import moco
from amcl_fast.ops import triton as backend
from tests.helpers.kernels.compare import DEVICE

pytestmark = pytest.mark.slow

N, HEADS, D = 8, 2, 32
# Both operands are rounded (2⁻⁹ and 2⁻¹² relative), and 1/τ, up to 10 here, multiplies what that does to s.
TOLERANCE = {torch.bfloat16: 6e-2, torch.float16: 8e-3}


def temperature(dim):
    torch.manual_seed(0)
    return AdaptiveTemperature(dim, 8, 0.1, 1.0, score="cosine").to(DEVICE)


def rows():
    torch.manual_seed(0)
    return AdaptiveTemperature(D, 8, 0.1, 1.0, share="row").to(DEVICE)


LOSSES = {
    "topk_mean": lambda b: SimCLRLoss(temperature(D), top_k=4, backend=b),
    "infonce": lambda b: SimCLRLoss(temperature(D), negatives="softmax", include_positive=True, backend=b),
    "nt_xent": lambda b: SimCLRLoss(0.5, negatives="softmax", include_positive=True, backend=b),
    "moco": lambda b: MoCoLoss(temperature(D), top_k=4, backend=b),
    "perplexity": lambda b: SimCLRLoss(
        PerplexityTemperature([0.3, 0.5], 0.6), negatives="softmax", include_positive=True, backend=b
    ),
    "hardest, perplexity": lambda b: MoCoLoss(PerplexityTemperature(0.5, 0.6), top_k=4, backend=b),
    "row": lambda b: SimCLRLoss(rows(), negatives="topk_softmax", top_k=4, backend=b),
    "simsiam": lambda b: SimSiamLoss(temperature(D), backend=b),
    "barlow": lambda b: BarlowTwinsLoss(temperature(N), backend=b),
}


def inputs(name, dtype):
    generator = torch.Generator().manual_seed(1)
    count = 4 if name == "simsiam" else 2
    views = [torch.randn(N, HEADS, D, generator=generator).to(DEVICE, dtype) for _ in range(count)]
    views = [view.requires_grad_() for view in views]
    if name in ("moco", "hardest, perplexity"):
        keys = torch.nn.functional.normalize(torch.randn(HEADS, 60, D, generator=generator), dim=-1)
        views.append(keys.mT.to(DEVICE, dtype))
    return views


def evaluate(loss, tensors):
    value = loss(*tensors)
    leaves = [t for t in (*tensors, *loss.parameters()) if t.requires_grad]
    grads = torch.autograd.grad(value, leaves, allow_unused=True)
    return [value.detach(), *(g for g in grads if g is not None)]


def relative_error(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-6)).item()


@pytest.fixture
def product_dtypes(monkeypatch):
    """Dtypes of x in every call of an operator."""
    seen = {}
    for name in ("contrast", "decorrelate", "align"):
        original = getattr(backend, name)

        def watch(x, *rest, _original=original, _name=name, **settings):
            seen.setdefault(_name, set()).add(x.dtype)
            return _original(x, *rest, **settings)

        monkeypatch.setattr(backend, name, watch)
    return seen


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_under_autocast(name, dtype, product_dtypes):
    tensors = inputs(name, torch.float32)
    expected = evaluate(LOSSES[name]("reference"), tensors)
    with torch.autocast(DEVICE, dtype):
        found = evaluate(LOSSES[name]("triton"), tensors)
    assert found[0].dtype == torch.float32
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        assert relative_error(a, b) < TOLERANCE[dtype]
    products = "decorrelate" if name == "barlow" else "contrast"
    if name == "simsiam":
        assert product_dtypes == {"align": {torch.float32}}
    else:
        assert product_dtypes[products] == {dtype}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_inputs(name, dtype):
    tensors = inputs(name, dtype)
    exact = [t.detach().float().requires_grad_(t.requires_grad) for t in tensors]
    expected = evaluate(LOSSES[name]("reference"), exact)
    found = evaluate(LOSSES[name]("triton"), tensors)
    assert found[0].dtype == torch.float32
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", LOSSES)
def test_float32_stays_float32(name, product_dtypes):
    evaluate(LOSSES[name]("triton"), inputs(name, torch.float32))
    assert set().union(*product_dtypes.values()) == {torch.float32}


@pytest.mark.skipif(DEVICE == "cuda", reason="the interpreter's launches are watched")
@pytest.mark.parametrize("name", ["topk_mean", "infonce", "simsiam", "barlow"])
def test_kernels_run_on_the_device_of_their_tensors(name, monkeypatch):
    """Not on the current one, which is another where a model stands on a second GPU."""
    current, launched = [], []
    launch = interpreter.GridExecutor.__call__

    @contextmanager
    def device_of(tensor):
        current.append(tensor.device)
        yield
        current.pop()

    def watched(executor, *args, **settings):
        launched.append(list(current))
        return launch(executor, *args, **settings)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", watched)
    evaluate(LOSSES[name]("triton"), inputs(name, torch.float32))
    assert len(launched) >= 2 and all(devices == [torch.device(DEVICE)] for devices in launched)


@pytest.mark.parametrize("name", LOSSES)
def test_under_checkpointing(name):
    """What is saved is unpacked once for a backward pass: it is formed again when it is asked for."""
    tensors, loss = inputs(name, torch.float32), LOSSES[name]("triton")
    leaves = [t for t in (*tensors, *loss.parameters()) if t.requires_grad]
    expected = torch.autograd.grad(loss(*tensors), leaves, allow_unused=True)
    again = checkpoint(loss, *tensors, use_reentrant=False)
    for found, right in zip(torch.autograd.grad(again, leaves, allow_unused=True), expected, strict=True):
        assert (found is None) == (right is None)
        assert found is None or torch.equal(found, right)


class Thrice(AdaptiveTemperature):
    """A φ of somebody's own."""

    def features(self, x):
        return 3 * super().features(x)


def gelu(module):
    module.phi[1] = torch.nn.GELU()


def deeper(module):
    module.phi.append(torch.nn.Linear(D, D))


def hook(module):
    module.phi[0].register_forward_hook(lambda layer, given, made: 2 * made)


def halved(module):
    features = module.features
    module.features = lambda x: 0.5 * features(x)


@pytest.mark.parametrize("change", [Thrice, gelu, deeper, hook, halved], ids=lambda change: change.__name__)
def test_a_phi_that_was_changed_is_what_it_was_changed_to(change):
    torch.manual_seed(0)
    kind = change if isinstance(change, type) else AdaptiveTemperature
    module = kind(D, 8, 0.1, 1.0, score="cosine").to(DEVICE)
    assert AdaptiveTemperature(D).is_plain
    plain = SimCLRLoss(temperature(D), top_k=4, backend="reference")(*inputs("topk_mean", torch.float32))
    if kind is AdaptiveTemperature:
        change(module)
    assert not module.is_plain
    found, expected = (
        evaluate(SimCLRLoss(module, top_k=4, backend=b), inputs("topk_mean", torch.float32))
        for b in ("triton", "reference")
    )
    assert abs(expected[0] - plain) > 1e-3 * abs(plain)
    assert max(map(relative_error, found, expected)) < 1e-4


@pytest.mark.parametrize("score", [None, "cosine"])
def test_the_queue_is_read_in_float32_by_phi_alone(score, monkeypatch):
    read = []
    original = moco.at_least_float32
    monkeypatch.setattr(moco, "at_least_float32", lambda x: read.append(x.shape) or original(x))
    criterion = MoCoLoss(0.2 if score is None else temperature(D), top_k=4, backend="triton")
    criterion(*inputs("moco", torch.bfloat16))
    assert ((HEADS, 60, D) in read) == (score is not None)

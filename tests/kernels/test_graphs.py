"""A step of every loss holds nothing that a CUDA graph cannot: it waits for nothing and depends on no value."""

import contextlib

import pytest
import torch
from torch._subclasses import FakeTensorMode

from amcl_fast import AdaptiveTemperature, BarlowTwinsLoss, LearnedTemperature, MoCoLoss, SimCLRLoss, SimSiamLoss, ops
from amcl_fast import rows as rows_module
from amcl_fast.kernels import common, decorrelate, tuning
from tests.helpers.kernels.compare import DEVICE
from tests.helpers.operations import Operations, without_launches

N, HEADS, D = 32, 2, 16

LOSSES = {
    "released": lambda: SimCLRLoss.released(D, backend="triton"),
    "recommended": lambda: SimCLRLoss.recommended(D, backend="triton"),
    "nt_xent": lambda: SimCLRLoss(0.5, negatives="softmax", include_positive=True, backend="triton"),
    "learned": lambda: SimCLRLoss(LearnedTemperature(), negatives="softmax", include_positive=True, backend="triton"),
    "top_k": lambda: SimCLRLoss(cosine(D), negatives="topk_softmax", top_k=5, include_positive=True, backend="triton"),
    "moco": lambda: MoCoLoss(cosine(D), top_k=5, backend="triton"),
    "moco_all": lambda: MoCoLoss.recommended(D, backend="triton"),
    "simsiam": lambda: SimSiamLoss(cosine(D), backend="triton"),
    "simsiam_constant": lambda: SimSiamLoss(backend="triton"),
    "barlow": lambda: BarlowTwinsLoss(cosine(N), backend="triton"),
    "barlow_constant": lambda: BarlowTwinsLoss(backend="triton"),
}


def cosine(dim):
    return AdaptiveTemperature(dim, 8, 0.1, 1.0, score="cosine")


def inputs(name, dtype=torch.float32, device=DEVICE):
    views = [torch.randn(N, HEADS, D, device=device, dtype=dtype) for _ in range(4 if "simsiam" in name else 2)]
    if "moco" in name:
        views.append(torch.nn.functional.normalize(torch.randn(HEADS, D, 200, device=device), dim=1).to(dtype))
    return views


@pytest.fixture
def as_on_a_device(monkeypatch):
    """The branches that the losses take there: nobody looks at values."""
    monkeypatch.setattr(rows_module, "may_look", lambda x: False)
    with without_launches(monkeypatch) as launches:
        yield launches


@pytest.mark.skipif(DEVICE == "cuda", reason="the interpreter's launches are counted")
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_a_step_waits_for_nothing(name, autocast, as_on_a_device):
    loss = LOSSES[name]()
    leaves = [*(z.requires_grad_() for z in inputs(name)[: 4 if "simsiam" in name else 2]), *loss.parameters()]
    tensors = leaves[: -len(list(loss.parameters())) or None] + inputs(name)[2:] * ("moco" in name)
    with Operations() as operations:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
            value = loss(*tensors)
        torch.autograd.grad(value, leaves, allow_unused=True)
    assert operations.waiting == []
    assert sum(as_on_a_device.values()) >= 3


@pytest.mark.skipif(DEVICE == "cuda", reason="fake tensors stand for those of a device")
@pytest.mark.parametrize("name", LOSSES)
def test_the_forward_pass_brings_nothing_from_the_host(name, as_on_a_device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(tuning, "device_name", lambda _: "")
    monkeypatch.setattr(common, "capability", lambda _: (9, 0))
    # A product of half precision into float32 has no fake.
    monkeypatch.setattr(decorrelate, "_multiply", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "device_of", lambda _: contextlib.nullcontext())
    with FakeTensorMode(), torch.no_grad():
        with torch.device("cuda"):
            loss = LOSSES[name]()
        tensors = inputs(name, torch.bfloat16, "cuda")
        with Operations() as operations:
            value = loss(*tensors)
    assert value.device.type == "cuda" and value.dim() == 0
    assert operations.waiting == []


@pytest.mark.skipif(DEVICE == "cuda", reason="the interpreter's launches are counted")
@pytest.mark.parametrize(("negatives", "launches"), [("topk_softmax", 13), ("softmax", 4)])
def test_a_temperature_per_anchor_waits_for_nothing(negatives, launches, as_on_a_device):
    """Selection once, calibration, rows, their gradients."""
    x = torch.nn.functional.normalize(torch.randn(HEADS, 40, D), dim=-1).requires_grad_()
    settings = {"tau_min": 0.01, "tau_max": 1.0, "negatives": negatives, "top_k": 5, "backend": "triton"}
    with Operations() as operations:
        tau, chosen = ops.calibrate(x, x, None, perplexity=0.5, **settings)
        tau = tau.detach().requires_grad_()
        rows, _ = ops.contrast(x, x, None, None, None, None, tau=tau, chosen=chosen, beta=0.0, **settings)
        torch.autograd.grad(rows.sum(), [x, tau])
    assert operations.waiting == []
    assert sum(as_on_a_device.values()) == launches


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x + torch.tensor([1.0]),
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
        lambda x: x.repeat_interleave(torch.ones(3, dtype=torch.int64)),
    ],
)
def test_what_would_wait_is_seen(call):
    x = torch.ones(3)
    with Operations() as operations:
        call(x)
    assert operations.waiting


def test_a_copy_from_the_host_is_seen():
    with FakeTensorMode(), Operations() as operations:
        torch.ones(3).to("cuda")
    assert operations.waiting == ["aten._to_copy between devices"]


# Kernels of the interpreter's step, Triton's and torch's, at most: what a step takes on the host is their number.
LAUNCHES = {"recommended": 60, "top_k": 60, "nt_xent": 35, "moco": 75}
VIEWS = {
    "aten.view", "aten._unsafe_view", "aten.t", "aten.transpose", "aten.detach", "aten.empty", "aten.empty_like",
    "aten.new_empty", "aten.unbind", "aten.slice", "aten.select", "aten.expand", "aten.unsqueeze", "aten.squeeze",
    "aten.permute", "aten.as_strided", "aten.alias", "aten.split", "aten.empty_strided", "aten.is_same_size",
}  # fmt: skip


@pytest.mark.skipif(DEVICE == "cuda", reason="the interpreter's launches are counted")
@pytest.mark.parametrize("name", LAUNCHES)
def test_a_step_has_few_kernels(name, as_on_a_device):
    loss = LOSSES[name]()
    tensors = inputs(name)
    leaves = [z.requires_grad_() for z in tensors[:2]]
    with Operations() as operations:
        torch.autograd.grad(loss(*tensors), [*leaves, *loss.parameters()], allow_unused=True)
    counted = {k: v for k, v in operations.counts.items() if k not in VIEWS and k.startswith("aten.")}
    assert sum(counted.values()) + sum(as_on_a_device.values()) <= LAUNCHES[name], (counted, as_on_a_device)


@pytest.mark.skipif(DEVICE == "cuda", reason="the interpreter's operations are counted")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_queue_becomes_rows_in_one_pass(dtype, as_on_a_device, monkeypatch):
    """(C, d, K) as MoCo keeps it: one kernel makes rows of the products' dtype, and φ reads it as it lies."""
    seen = []
    contrast = ops.contrast

    def watched(*tables, **settings):
        seen.append((tables[1], operations.counts.copy()))
        return contrast(*tables, **settings)

    monkeypatch.setattr(ops, "contrast", watched)
    loss = MoCoLoss(cosine(D), negatives="softmax", backend="triton")
    q, k, queue = inputs("moco", dtype)
    with Operations() as operations, torch.autocast(DEVICE, torch.float16):
        loss(q, k, queue)
    ((candidates, counts),) = seen
    assert candidates.dtype == torch.float16 and candidates.is_contiguous()
    assert torch.equal(candidates, queue.mT.to(torch.float16))
    copies = counts["aten._to_copy"] + counts["aten.clone"] + counts["aten.copy_"]
    assert copies == (1 if dtype == torch.float32 else 2)  # φ reads float32


@pytest.mark.skipif(DEVICE == "cuda", reason="the interpreter's operations are counted")
def test_anchors_are_the_candidates(as_on_a_device, monkeypatch):
    """The same objects, in which the operator sees one table."""
    seen = []
    monkeypatch.setattr(ops, "contrast", lambda *tables, _original=ops.contrast, **k: seen.append(tables) or
                        _original(*tables, **k))  # fmt: skip
    for autocast in (False, True):
        with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
            LOSSES["top_k"]()(*inputs("top_k"))
            LOSSES["nt_xent"]()(*inputs("nt_xent"))
    for anchors, candidates, phi_anchors, phi_candidates, *_ in seen:
        assert candidates is anchors and phi_candidates is phi_anchors
    assert len(seen) == 4

"""torch.compile(fullgraph=True) of whole losses: the same numbers, on every backend."""

from types import SimpleNamespace

import pytest
import torch

from amcl_fast import AdaptiveTemperature, BarlowTwinsLoss, MoCoLoss, SimCLRLoss, SimSiamLoss, capabilities

pytestmark = pytest.mark.slow

N, HEADS, D = 6, 2, 16


def adaptive(dim):
    return AdaptiveTemperature(dim, 8, 0.1, 1.0, score="cosine")


def projections(count):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(N, HEADS, D, generator=generator, requires_grad=True) for _ in range(count)]


def queue():
    return torch.nn.functional.normalize(
        torch.randn(HEADS, 40, D, generator=torch.Generator().manual_seed(1)), dim=-1
    ).mT


LOSSES = {
    "topk_mean": (lambda **k: SimCLRLoss(adaptive(D), top_k=4, **k), 2),
    "topk_softmax": (lambda **k: SimCLRLoss(adaptive(D), negatives="topk_softmax", top_k=4, **k), 2),
    "infonce": (lambda **k: SimCLRLoss(adaptive(D), negatives="softmax", include_positive=True, **k), 2),
    "nt_xent": (lambda **k: SimCLRLoss(0.5, negatives="softmax", include_positive=True, **k), 2),
    "moco": (lambda **k: MoCoLoss(adaptive(D), top_k=4, **k), 2),
    "simsiam": (lambda **k: SimSiamLoss(adaptive(D), **k), 4),
    "barlow": (lambda **k: BarlowTwinsLoss(adaptive(N), **k), 2),
    "barlow_constant": (lambda **k: BarlowTwinsLoss(**k), 2),
}


def loads_here(monkeypatch):
    """Inductor tries what the processor can by loading libraries, each in a process that imports torch for it."""
    here = SimpleNamespace(check_call=lambda command, **_: exec(command[-1], {}), DEVNULL=None)
    monkeypatch.setattr("torch._inductor.cpu_vec_isa.subprocess", here)


@pytest.mark.parametrize("backend", ["native", "triton", "reference"])
@pytest.mark.parametrize("name", LOSSES)
def test_compiles_whole(name, backend, monkeypatch):
    if backend == "native" and not capabilities.native_status().available:
        pytest.skip(capabilities.native_status().reason)
    # Else all cases count towards one limit of recompilations.
    torch._dynamo.reset()
    torch.manual_seed(0)
    make, views = LOSSES[name]
    loss = make(backend=backend)
    # Inductor is where custom operators went wrong before; without a GPU it takes a C++ compiler and ten seconds a
    # loss, so one loss of each operator must do.
    compiler = "inductor" if name in ("topk_mean", "simsiam", "barlow") and backend == "native" else "aot_eager"
    if compiler == "inductor":
        loads_here(monkeypatch)
    compiled = torch.compile(loss, fullgraph=True, backend=compiler)
    results = []
    for run in (loss, compiled):
        inputs = projections(views) + ([queue()] if name == "moco" else [])
        loss.zero_grad()
        value = run(*inputs)
        value.backward()
        tensors = {"value": value.detach(), **loss.last_stats}
        tensors |= {f"input {i}": t.grad for i, t in enumerate(inputs) if t.grad is not None}
        tensors |= {key: p.grad for key, p in loss.named_parameters()}
        results.append(tensors)
    expected, found = results
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        message = f"{key}: {tensor} compiled, {expected[key]} not"
        torch.testing.assert_close(tensor, expected[key], rtol=1e-5, atol=1e-6, equal_nan=True, msg=message)


@pytest.mark.parametrize("name", ["infonce", "moco", "simsiam", "barlow"])
def test_more_than_two_views_compile_whole(name):
    torch._dynamo.reset()
    torch.manual_seed(0)
    make, _ = LOSSES[name]
    loss, results = make(), []
    for run in (loss.of_views, torch.compile(loss.of_views, fullgraph=True, backend="aot_eager")):
        views = torch.stack(projections(6)).detach().requires_grad_()
        given = {"simsiam": [views[:3], views[3:]], "moco": [views[:4], views[4:], queue()]}
        loss.zero_grad()
        run(*given.get(name, [views]), targets=[0, 1]).backward()
        results.append([views.grad, *(p.grad for p in loss.parameters()), *loss.last_stats.values()])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)

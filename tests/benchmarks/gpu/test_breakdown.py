import pytest
import torch

from benchmarks.gpu import breakdown, device
from benchmarks.gpu.checks import EqualRows
from tests.helpers.benchmarks.tiny import SIMCLR


def test_names_of_kernels():
    name = "void at::native::(anonymous namespace)::vectorized_elementwise_kernel<4, at::native::F>(int, F)"
    assert breakdown.short(name) == "vectorized_elementwise_kernel"
    assert breakdown.short("_survivors") == "_survivors"


def test_every_step_has_a_name_of_its_own():
    found = list(breakdown.steps())
    assert len({", ".join(key) for key in found}) == len(found) and ("SimCLR, N = 4096, one table", "dense") in found


def test_what_cannot_be_captured_says_why(monkeypatch):
    """Times are by stand-ins: this machine need not have a GPU."""

    def waits(step):
        raise RuntimeError("operation not permitted\nmore")

    kernels = [{"name": "slow", "calls": 1.0, "us": 990.0}, {"name": "void fast<4>(int)", "calls": 3.0, "us": 10.0}]
    monkeypatch.setattr(device, "kernels", lambda step: kernels)
    monkeypatch.setattr(device, "wall", lambda step: 2.0)
    monkeypatch.setattr(device, "captured", waits)
    row = {"case": "a", "run": "ours", **breakdown.break_down(lambda: None)}
    assert row["busy_ms"] == 1.0 and [kernel["name"] for kernel in row["kernels"]] == ["slow", "fast"]
    text = breakdown.line(row)
    assert "busy 1.000 ms, wall 2.000 ms, graph RuntimeError: operation not permitted, 4 kernels" in text
    assert "slow" in text and "fast" not in text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    row = breakdown.break_down(breakdown.step_of_case(SIMCLR, "ours"))
    assert row["busy_ms"] > 0 and any(kernel["name"] == "_select_maxima" for kernel in row["kernels"])


def test_equal_rows_keep_their_gradients():
    case = EqualRows(**vars(SIMCLR))
    x, y, *_ = case.operands("cpu", torch.float32)
    assert x.requires_grad and y.requires_grad and torch.equal(x[:, 0], y[:, -1])

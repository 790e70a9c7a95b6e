import pytest
import torch
from tiny import SIMCLR

from benchmarks import breakdown


def test_names_of_kernels():
    name = "void at::native::(anonymous namespace)::vectorized_elementwise_kernel<4, at::native::F>(int, F)"
    assert breakdown.short(name) == "vectorized_elementwise_kernel"
    assert breakdown.short("_survivors") == "_survivors"


def test_every_step_has_a_name_of_its_own():
    found = [(case, run) for case, run, _ in breakdown.steps()]
    assert len(set(found)) == len(found) and ("SimCLR, N = 4096", "dense") in found


def test_a_step_that_fails_leaves_the_others(monkeypatch):
    """The second one's steps are broken down by a stand-in: this machine need not have a GPU."""

    def fails():
        raise RuntimeError("no room\nmore")

    monkeypatch.setattr(breakdown, "steps", lambda: iter([("a", "ours", fails), ("b", "dense", lambda: None)]))
    kernels = [{"name": "fast", "calls": 3.0, "us": 10.0}, {"name": "slow", "calls": 1.0, "us": 990.0}]
    found = {"kernels": kernels, "busy_ms": 1.0, "wall_ms": 2.0, "graph_ms": None, "graph_problem": "a wait"}
    monkeypatch.setattr(breakdown, "break_down", lambda step: found)
    rows = list(breakdown.rows())
    assert rows == [
        {"case": "a", "run": "ours", "failed": "RuntimeError: no room"},
        {"case": "b", "run": "dense", **found},
    ]
    text = breakdown.table(rows)
    assert "a, ours: FAILED RuntimeError: no room" in text and "slow" in text and "fast" not in text
    assert "busy 1.000 ms, wall 2.000 ms, graph a wait, 4 kernels" in text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    row = breakdown.break_down(breakdown.step_of_case(SIMCLR, "ours"))
    assert row["busy_ms"] > 0 and any(kernel["name"] == "_maxima" for kernel in row["kernels"])


def test_equal_rows_keep_their_gradients():
    case = breakdown.EqualRows(**vars(SIMCLR))
    x, y, *_ = case.operands("cpu", torch.float32)
    assert x.requires_grad and y.requires_grad and torch.equal(x[:, 0], y[:, -1])

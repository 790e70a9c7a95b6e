"""The checks of a GPU, by the kernels themselves in Triton's interpreter."""

from dataclasses import replace

import pytest
import torch

from benchmarks import check
from benchmarks.gpu import checks, device
from benchmarks.measure.operators import WrongResult
from benchmarks.peers import implementation
from tests.helpers.benchmarks.tiny import SIMCLR

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
SMALL = replace(SIMCLR, heads=1, rows=10, settings=SIMCLR.settings | {"top_k": 3})


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(device, "KIND", "cpu")


def test_checks_pass_in_the_interpreter_and_can_fail(monkeypatch):
    [row] = checks.check(SMALL, torch.float32)
    assert row["error"] < 1e-5 and row["same_twice"]
    monkeypatch.setitem(check.FLOOR, torch.float32, -1.0)
    found = checks.check(SMALL, torch.float32)
    assert next(found)["error"] == row["error"]
    with pytest.raises(WrongResult, match=f"relative error {row['error']:.2e}"):
        next(found)


def test_runs_that_differ_in_a_bit_are_told(monkeypatch):
    exact, calls = implementation("reference", SMALL), []

    def drifts(*operands):
        calls.append(1)
        return exact(*operands) * (1 + 1e-7 * (len(calls) > 2))

    monkeypatch.setattr(checks, "implementation", lambda name, case: drifts)
    found = checks.check(SMALL, torch.float32)
    assert next(found)["same_twice"] is False
    with pytest.raises(WrongResult, match="two runs differ"):
        next(found)


@pytest.mark.parametrize("case", checks.unusual_cases(), ids=lambda case: case.name)
def test_unusual_inputs(case):
    small = replace(case, heads=min(case.heads, 2), rows=6, width=24, candidates=150 if case.candidates else 0)
    x, y, *_, offset = small.operands("cpu", torch.float32)[:5]
    assert x.requires_grad and x.is_leaf and (x is y) == case.shared
    if isinstance(case, checks.UnusualCase):
        assert x.stride(-1) != 1 and offset.requires_grad
        if case.candidates:
            assert torch.equal(y[:, 3], y[:, 147])
    if isinstance(case, checks.EqualRows):
        assert torch.equal(x, y) and torch.equal(x[:, 0], x[:, 5])
    found = checks.check(small, torch.float32)
    row = next(found)
    if case.name.startswith("τ from 1e-5") and "softmax" in case.name:
        # Over all, r is formed again in the backward pass, and numpy's products round by their shape: half a unit in
        # the last place of r = 8, in an exponent of 2,000.
        assert row["error"] < 5e-3 and row["same_twice"]
    else:
        assert list(found) == [] and row["error"] < 1e-4


@pytest.mark.parametrize("case", checks.whole_cases(), ids=lambda case: case.name)
def test_whole_losses(case):
    candidates = min(case.candidates, 40)
    [row] = checks.check(replace(case, heads=2, rows=12, width=16, candidates=candidates), torch.float32)
    assert row["error"] < 1e-4
    if case.operator == "moco":
        queue = case.operands("cpu", torch.float32)[2]
        assert queue.stride(-2) == 1 and not queue.requires_grad


def nan_checks():
    return {name: call for name, call in checks.all_checks().items() if ", NaN in " in name}


@pytest.mark.parametrize("name", nan_checks())
def test_a_nan_shows(name, monkeypatch):
    monkeypatch.setattr(
        device, "sized", lambda case: replace(case, rows=8, width=12, candidates=min(case.candidates, 130))
    )
    monkeypatch.setattr(checks, "DTYPES", (torch.float32,))
    [row] = nan_checks()[name.replace("bfloat16", "float32")]()
    assert row["found"] == "NaN"
    monkeypatch.setattr(checks, "implementation", lambda *_: lambda x, *rest: torch.zeros(x.shape[:2]))
    with pytest.raises(WrongResult, match="shows nowhere"):
        list(nan_checks()[name.replace("bfloat16", "float32")]())


def test_small_cases_cover_every_form():
    cases = checks.small_cases()
    assert {case.operator for case in cases} == {"contrast", "align", "decorrelate"}
    assert {case.adaptive for case in cases} == {True, False}
    assert len({case.name for case in cases}) == len(cases)


def test_smoke_has_what_has_gone_wrong_before():
    names = "\n".join(checks.smoke())
    for what in (
        "τ from 1e-5", "equal rows", "queue of equal keys", "NaN in x", "NaN in y", "transposed queue", "one table",
        "float16", "1100", "unusual align", "N = 4096", "d = 33",
    ):  # fmt: skip
        assert what in names, what
    assert len(checks.all_checks()) > 90

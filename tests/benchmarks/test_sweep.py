"""What is swept is what the launchers take; in the interpreter, at sizes of a test."""

from dataclasses import replace

import pytest
import torch
from tiny import SIMCLR

from benchmarks import sweep


@pytest.mark.parametrize("one", sweep.SWEEPS, ids=lambda one: one.name)
def test_sweeps_replace_a_table_of_the_launchers(one):
    assert one.variants[0] == {} and len(one.variants) > 3
    assert all(variant not in one.variants[:number] for number, variant in enumerate(one.variants))
    original = getattr(one.owner, one.function)
    with one.applied(one.variants[1]):
        assert getattr(one.owner, one.function) is not original
    assert getattr(one.owner, one.function) is original
    kernels = {name for name in dir(one.owner) if name in one.kernels}
    assert kernels == set(one.kernels)


def test_parameters_reach_the_launcher(monkeypatch):
    x = torch.zeros(1, 8, 64, dtype=torch.bfloat16)
    one = sweep.SWEEPS[0]
    with one.applied({"M": 32}):
        assert one.owner.similarity_tiling(x, 64)["M"] == 32
    # A table that is asked by keyword can be swept in part.
    part = replace(sweep.SWEEPS[1], function="_tiling", only=(("heads", 2),))
    original = lambda **_: {"BLOCK": 16}  # noqa: E731
    monkeypatch.setattr(part.owner, "_tiling", original)
    with part.applied({"BLOCK": 8}):
        assert part.owner._tiling(heads=2) == {"BLOCK": 8} and part.owner._tiling(heads=3) == {"BLOCK": 16}


def test_rows_hold_times_and_differences(monkeypatch):
    """A stand-in for the profiler: this machine need not have a GPU."""
    case = replace(SIMCLR, heads=1, rows=10, settings=SIMCLR.settings | {"top_k": 3})
    one = replace(sweep.SWEEPS[1], variants=({}, {"BLOCK": 8}, {"BLOCK": 7}))
    monkeypatch.setattr(sweep, "SWEEPS", (one,))
    monkeypatch.setattr(sweep, "_case", lambda _: case)
    monkeypatch.setattr(
        sweep, "step_of_case", lambda case, run: sweep_step(case, [case.operands("cpu", torch.float32)])
    )
    kernels = [{"name": name, "calls": 1.0, "us": 3.0} for name in one.kernels]
    monkeypatch.setattr(sweep, "break_down", lambda step, times: {"kernels": kernels})
    chosen, other, impossible = sweep.rows(jobs=1)
    assert chosen["us"] == dict.fromkeys(one.kernels, 3.0) and chosen["error"] == 0
    assert other["parameters"] == {"BLOCK": 8} and 0 <= other["error"] < 1e-6
    assert "failed" in impossible and impossible["parameters"] == {"BLOCK": 7}
    assert "1 do not run" in sweep.table([chosen, other, impossible])


def sweep_step(case, sets):
    from benchmarks.operators import step_of
    from benchmarks.peers import implementation

    return step_of(implementation("triton", case), sets)

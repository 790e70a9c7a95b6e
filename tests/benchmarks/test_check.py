from dataclasses import replace

import pytest
import torch

from benchmarks import check
from benchmarks.peers import implementation
from tests.helpers.benchmarks.tiny import ALL, SIMCLR


@pytest.mark.parametrize("case", ALL, ids=[case.name for case in ALL])
def test_our_backend_passes(case):
    oracle = check.Oracle(case, "cpu", case.dtype_on("cpu"))
    assert oracle.error(implementation("auto", case)) <= oracle.tolerance


def wrong_by(place: int):
    """Our operator with the gradient of one operand 0.1 % too large."""

    def run(*operands):
        exact = implementation("auto", SIMCLR)
        changed = list(operands)
        # Its value stays, its gradient grows.
        changed[place] = 1.001 * operands[place] - 0.001 * operands[place].detach()
        return exact(*changed)

    return run


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("largest", [10**6, 200])
def test_an_error_in_one_gradient_is_seen(monkeypatch, place, largest):
    """At full size, and on a sample of the anchors."""
    monkeypatch.setitem(check._MOST_SIMILARITIES, "cpu", largest)
    oracle = check.Oracle(SIMCLR, "cpu", torch.float32)
    assert oracle.error(implementation("auto", SIMCLR)) <= oracle.tolerance < 1e-4
    assert oracle.error(wrong_by(place)) == pytest.approx(1e-3, rel=0.1)


def test_a_swapped_candidate_is_an_error():
    case = SIMCLR

    def next_ones(*operands):
        changed = list(operands)
        changed[5] = torch.stack([operands[5][:, 0], (operands[5][:, 1] + 1) % case.rows], dim=1)
        return implementation("auto", case)(*changed)

    oracle = check.Oracle(case, "cpu", torch.float32)
    assert oracle.error(next_ones) > 100 * oracle.tolerance


def test_nan_is_an_error():
    assert check.relative_error([torch.tensor([torch.nan])], [torch.ones(1)]) == float("inf")


@pytest.mark.parametrize("largest", [10**6, 200])
@pytest.mark.parametrize("part", [0, 1])
def test_one_table_has_one_gradient_of_both_its_parts(monkeypatch, largest, part):
    """At full size, and on a sample of the anchors; what either part lacks is seen."""
    monkeypatch.setitem(check._MOST_SIMILARITIES, "cpu", largest)
    case = replace(SIMCLR, shared=True)
    x, y, phi_x, phi_y, *_ = case.operands("cpu", torch.float32)
    assert x is y and phi_x is phi_y
    oracle, ours = check.Oracle(case, "cpu", torch.float32), implementation("auto", case)
    assert oracle.error(ours) <= oracle.tolerance < 1e-4

    def lacks(*operands):
        changed = list(operands)
        changed[part] = 1.001 * operands[part] - 0.001 * operands[part].detach()
        return ours(*changed)

    assert oracle.tolerance < oracle.error(lacks) < 2e-3

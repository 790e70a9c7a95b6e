from dataclasses import replace

import pytest

from benchmarks.measure import scaling
from benchmarks.measure.operators import WrongResult
from tests.helpers.benchmarks.tiny import SIMCLR


def test_exponent_of_a_power():
    values = [1, 2, 4, 8, 16]
    assert scaling.exponent(values, [3 * v**1.7 for v in values]) == pytest.approx(1.7)


def test_exponent_is_of_the_upper_half():
    assert scaling.exponent([1, 2, 4, 8], [100, 100, 16, 64]) == pytest.approx(2)


def test_exponent_needs_two_points():
    assert scaling.exponent([1, 2, 4], [5.0, None, None]) is None
    assert scaling.exponent([1, 2, 4], [2.0, 4.0, None]) == pytest.approx(1)


def test_axes_change_one_thing():
    base = scaling.case_at("N", 512)
    for axis, value, field, expected in (("N", 64, "rows", 128), ("C", 5, "heads", 5), ("d", 32, "width", 32)):
        case = scaling.case_at(axis, value)
        assert getattr(case, field) == expected
        assert case.settings == base.settings
    assert scaling.case_at("κ", 7).settings == base.settings | {"top_k": 7}


def test_row_and_refusal(monkeypatch):
    monkeypatch.setitem(scaling.AXES, "N", (8, 16, 2048))
    monkeypatch.setattr(scaling, "in_fresh_process", lambda case, name, device: case.rows**2)
    monkeypatch.setitem(scaling._MOST_OPERATIONS, "cpu", 1e8)
    monkeypatch.setattr(scaling, "case_at", lambda axis, n: small(n))
    row = scaling.measure("N", "cpu", "auto", 0.0)
    assert row["values"] == [8, 16, 2048]
    assert row["dense"]["milliseconds"][2] is None and row["ours"]["milliseconds"][2] > 0
    assert row["ours"]["memory_exponent"] == pytest.approx(2)
    assert row["products"]["extra_bytes"] == [None, None, None]

    class Wrong(scaling.Oracle):
        def error(self, run):
            return 1.0

    monkeypatch.setattr(scaling, "Oracle", Wrong)
    with pytest.raises(WrongResult, match=r"relative error 1.0e\+00"):
        scaling.measure("N", "cpu", "auto", 0.0)


def small(n):
    return replace(SIMCLR, rows=2 * n, heads=1)

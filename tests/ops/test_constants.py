"""Numbers that Python, Triton and C++ have each for themselves are the same."""

import inspect
import re

import pytest
from torch.nn.functional import normalize

from amcl_fast import reference, rows, temperature

native = pytest.importorskip("amcl_fast._native")
common = pytest.importorskip("amcl_fast.kernels.common")
align = pytest.importorskip("amcl_fast.kernels.align")
of_rows = pytest.importorskip("amcl_fast.kernels.rows")
passes = pytest.importorskip("amcl_fast.kernels.select.passes")


def test_share_of_a_bound():
    assert native.BOUND_SHARE == common.BOUND_SHARE.value == reference.BOUND_SHARE


def test_shortest_and_longest_rows():
    assert native.EPS == common.EPS.value == inspect.signature(normalize).parameters["eps"].default
    assert native.LONGEST == common.LONGEST.value == rows.LONGEST


def test_largest_float32():
    assert passes.LARGEST_FLOAT32.value == temperature.LARGEST_FLOAT32


def test_factors_of_align():
    """The planes that the kernels write and read: kernels have no names for them."""
    source = inspect.getsource(align)
    written = re.findall(r"tl\.store\(saved \+ (?:(?:(\d) \* )?(count) \+ )?flat, (-?\w+)", source)
    planes = {int(times or bool(count)): value for times, count, value in written}
    read = re.findall(r"tl\.load\(saved \+ (?:(?:(\d) \* )?(count) \+ )?flat", source)
    assert sorted(planes) == sorted(int(times or bool(count)) for times, count in read) == list(range(align.FACTORS))
    assert planes[align.BY_OFFSET] == "-by_r"


def test_kinds_of_halves():
    source = inspect.getsource(of_rows)
    found = re.findall(r"if HALVES == (\d):\n +tl\.store\(half \+ in_half \+ column\[None, :\], (\w+), mask", source)
    assert found == [(str(of_rows.RAW), "raw"), (str(of_rows.READY), "value")] and of_rows.NONE == 0
    assert set(re.findall(r"HALVES == (\d)", source)) == {str(of_rows.RAW), str(of_rows.READY)}

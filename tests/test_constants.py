"""Numbers that Python, Triton and C++ have each for themselves are the same."""

import inspect

import pytest
from torch.nn.functional import normalize

from amcl_fast import reference, rows

native = pytest.importorskip("amcl_fast._native")
common = pytest.importorskip("amcl_fast.kernels.common")


def test_share_of_a_bound():
    assert native.BOUND_SHARE == common.BOUND_SHARE.value == reference.BOUND_SHARE


def test_shortest_and_longest_rows():
    assert native.EPS == common.EPS.value == inspect.signature(normalize).parameters["eps"].default
    assert native.LONGEST == common.LONGEST.value == rows.LONGEST

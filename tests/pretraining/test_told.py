"""Errors in one line."""

from amcl_fast.pretraining.told import message


def test_an_error_whose_causes_are_a_ring_is_told():
    first, second = ValueError("a\nGiven value type: b"), ValueError("c\nGiven value type: d")
    first.__cause__, second.__cause__ = second, first
    assert message(first) == "c Given value type: d"
    second.__cause__ = ValueError("wandb is not installed")
    assert message(first) == "wandb is not installed"

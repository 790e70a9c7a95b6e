"""Errors in one line."""

from amcl_fast.pretraining.told import message


def test_an_error_whose_causes_are_a_ring_is_told():
    first, second = ValueError("a\nGiven value type: b"), ValueError("c\nGiven value type: d")
    first.__cause__, second.__cause__ = second, first
    assert message(first) == "c Given value type: d"
    second.__cause__ = ValueError("wandb is not installed")
    assert message(first) == "wandb is not installed"


def test_a_class_whose_package_is_missing_says_what_to_install():
    said = (
        "Errors:\n- Problem with given class_path 'a.b.WandbLogger':\n  Requirement 'wandb>=0.12.10' not met. HINT: x"
    )
    assert message(ValueError(said)) == "a.b.WandbLogger needs wandb>=0.12.10: pip install wandb"

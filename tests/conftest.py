"""Fixtures for all tests."""

import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_empty():
    """Every torch.empty is filled with NaN, so that reading what nothing wrote shows in the result."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)

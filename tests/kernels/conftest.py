"""The kernels run in Triton's interpreter where there is no GPU, which must be said before triton is imported."""

import os
import sys

import pytest
import torch

if not torch.cuda.is_available():
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise pytest.UsageError("triton was imported before the tests of its kernels: set TRITON_INTERPRET=1")
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def memcheck(monkeypatch):
    """Kernels touch only their tensors, in every test of this folder; a GPU has compute-sanitizer for it."""
    if torch.cuda.is_available():
        yield None
        return
    from tests.helpers.kernels.memcheck import Memcheck

    yield Memcheck(monkeypatch)

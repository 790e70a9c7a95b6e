"""The choice of a backend."""

import subprocess
import sys

import pytest
import torch

from amcl_fast import SimCLRLoss, capabilities, ops
from amcl_fast.capabilities import Status

CPU32, CPU64 = torch.ones(1), torch.ones(1, dtype=torch.float64)
YES, NO = Status(True, "there"), Status(False, "no compiler was found")


@pytest.fixture
def native(monkeypatch):
    def set_to(status):
        monkeypatch.setattr(capabilities, "native_status", lambda: status)

    return set_to


@pytest.mark.parametrize("tensor", [CPU32, CPU64])
def test_auto_prefers_native_on_the_cpu(native, tensor):
    native(YES)
    assert ops.resolve("auto", tensor) == "native"
    native(NO)
    assert ops.resolve("auto", tensor) == "reference"


def test_auto_takes_the_reference_on_other_devices(native):
    native(YES)
    assert ops.resolve("auto", torch.ones(1, device="meta")) == "reference"


def test_a_backend_that_is_missing_says_why(native):
    native(NO)
    with pytest.raises(RuntimeError, match="'native' is not available: no compiler was found"):
        SimCLRLoss(0.1, backend="native")(torch.randn(4, 8), torch.randn(4, 8))


def test_native_takes_cpu_tensors_only(native):
    native(YES)
    with pytest.raises(ValueError, match="tensors must be on the CPU for backend 'native', got meta"):
        ops.resolve("native", torch.ones(1, device="meta"))


def test_without_a_compiler_everything_runs(native):
    native(NO)
    z1, z2 = torch.randn(4, 2, 8), torch.randn(4, 2, 8)
    torch.testing.assert_close(SimCLRLoss(0.1)(z1, z2), SimCLRLoss(0.1, backend="reference")(z1, z2))


def test_the_losses_import_no_trainer_and_no_pipeline():
    heavy = ("lightning", "nvidia.dali", "jsonargparse", "torchvision", "matplotlib", "triton")
    code = f"import sys, amcl_fast, amcl_fast.losses; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"

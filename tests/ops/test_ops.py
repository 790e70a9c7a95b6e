"""The choice of a backend."""

import subprocess
import sys
import types

import pytest
import torch

from amcl_fast import SimCLRLoss, capabilities, doctor, ops
from amcl_fast.capabilities import Status
from amcl_fast.ops import backends

CPU32, CPU64 = torch.ones(1), torch.ones(1, dtype=torch.float64)
YES, NO = Status(True, "there"), Status(False, "no compiler was found")


@pytest.fixture
def native(monkeypatch):
    def set_to(status):
        monkeypatch.setattr(capabilities, "native_status", lambda: status)

    return set_to


def test_every_backend_has_a_name_that_type_checkers_know():
    assert ("auto", *backends.TABLE) == ops.BACKENDS


@pytest.mark.parametrize("tensor", [CPU32, CPU64])
def test_auto_prefers_native_on_the_cpu(native, tensor):
    native(YES)
    assert ops.resolve("auto", tensor) == "native"
    native(NO)
    assert ops.resolve("auto", tensor) == "reference"


def test_auto_takes_the_reference_on_other_devices(native):
    native(YES)
    assert ops.resolve("auto", torch.ones(1, device="meta")) == "reference"


def test_auto_takes_what_fits_the_dtype(native):
    native(YES)
    assert ops.resolve("auto", CPU32.bfloat16()) == "reference"
    with pytest.raises(TypeError, match=r"^tensors must be one of .* for backend 'reference', got torch.int64"):
        ops.resolve("auto", CPU32.long())


def test_a_loss_widens_for_native(native):
    native(YES)
    assert ops.resolve_widened("native", CPU32.half()) == "native"
    assert ops.resolve_widened("auto", CPU32.half()) == "native"


@pytest.fixture
def mine(monkeypatch):
    """A backend more, as CONTRIBUTING.md says."""
    module = types.SimpleNamespace(align=lambda x, *_, **settings: (x.sum(-1), {}))
    monkeypatch.setitem(backends.TABLE, "mine", backends.Backend(lambda: module, lambda: YES, None, (torch.float16,)))


def test_a_backend_is_a_row_of_the_table(mine, monkeypatch):
    x = torch.ones(1, 2, 3, dtype=torch.float16)
    settings = {"tau_min": 0.1, "tau_max": 1.0, "weight": 1.0, "beta": 0.0}
    assert ops.resolve("mine", x) == "mine"
    assert ops.align(x, x, None, None, None, **settings, backend="mine")[0].tolist() == [[3, 3]]
    with pytest.raises(TypeError, match=r"^x must be one of float16 for backend 'mine', got torch.float32"):
        ops.align(x.float(), x.float(), None, None, None, **settings, backend="mine")
    assert doctor.look().backends["mine"] == YES
    monkeypatch.setitem(backends.TABLE, "mine", backends.TABLE["mine"]._replace(status=lambda: NO))
    with pytest.raises(RuntimeError, match="'mine' is not available: no compiler was found"):
        ops.resolve("mine", x)


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

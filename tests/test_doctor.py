"""amcl_fast.capabilities, and what `doctor` makes of it."""

import sys
import sysconfig
from pathlib import Path

import pytest
import torch

import amcl_fast
from amcl_fast import capabilities, doctor

STATUSES = (
    capabilities.native_status,
    capabilities.triton_status,
    capabilities.dali_status,
    capabilities.apex_status,
)


@pytest.fixture(autouse=True)
def fresh_answers():
    """The answers are kept for the life of the process: forget them before and after."""
    for status in STATUSES:
        status.cache_clear()
    yield
    for status in STATUSES:
        status.cache_clear()


@pytest.fixture
def note(tmp_path, monkeypatch) -> Path:
    """Stands for the file in which an install without the native module says why; not there yet."""
    monkeypatch.setattr(capabilities, "_NATIVE_NOTE", tmp_path / "note.txt")
    return tmp_path / "note.txt"


@pytest.fixture
def foreign_folder(tmp_path, monkeypatch) -> Path:
    """A folder on sys.path for packages that stand for others'; what is imported from it is forgotten."""
    before = set(sys.modules)
    for name in ("apex", "apex.optimizers", "amp_C"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("apex", "amp_C"):
            del sys.modules[name]


def as_gpu_machine(monkeypatch, capability=(9, 0)) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")


def as_cpu_machine(monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def write_apex(folder: Path, lamb: str) -> None:
    """Write a package with the layout of NVIDIA's apex, its FusedLAMB being the expression `lamb`."""
    optimizers = folder / "apex" / "optimizers"
    optimizers.mkdir(parents=True)
    (folder / "apex" / "__init__.py").touch()
    (optimizers / "__init__.py").write_text(f"import torch\nFusedSGD = torch.optim.SGD\nFusedLAMB = {lamb}\n")


def test_native_says_why_the_install_has_none(note, monkeypatch):
    monkeypatch.setitem(sys.modules, "amcl_fast._native", None)
    note.write_text("no CMake when installed\n")
    assert capabilities.native_status() == capabilities.Status(False, "built without: no CMake when installed")


def test_native_never_built(note, monkeypatch):
    monkeypatch.setitem(sys.modules, "amcl_fast._native", None)
    status = capabilities.native_status()
    assert not status.available
    assert "pip install" in status.reason


def test_native_that_does_not_load(note, tmp_path, monkeypatch):
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    (tmp_path / f"_native{suffix}").write_bytes(b"no shared object")
    monkeypatch.setattr(amcl_fast, "__path__", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "amcl_fast._native", raising=False)
    # A note of an earlier install must not hide what is wrong now.
    note.write_text("no CMake when installed\n")
    status = capabilities.native_status()
    assert not status.available
    assert status.reason.startswith("does not load: ")


@pytest.mark.parametrize(
    ("capability", "available"), [((7, 5), False), ((8, 0), True), ((8, 9), True), ((10, 0), True)]
)
def test_triton_needs_compute_capability_8(monkeypatch, capability, available):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    as_gpu_machine(monkeypatch, capability)
    status = capabilities.triton_status()
    assert status.available is available
    assert ".".join(map(str, capability)) in status.reason


def test_triton_without_gpu_needs_the_interpreter(monkeypatch):
    as_cpu_machine(monkeypatch)
    status = capabilities.triton_status()
    assert not status.available
    assert "no CUDA device" in status.reason
    capabilities.triton_status.cache_clear()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert capabilities.triton_status().available


def test_dali_gpu_needs_a_gpu(monkeypatch):
    as_cpu_machine(monkeypatch)
    assert capabilities.dali_status("cpu").available
    assert capabilities.dali_status("gpu") == capabilities.Status(False, "torch sees no CUDA device")
    with pytest.raises(ValueError, match="device must be"):
        capabilities.dali_status("mixed")


def test_unrelated_apex_is_not_nvidias_and_not_run(foreign_folder):
    package = foreign_folder / "apex"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('the web toolkit ran')\n")
    status = capabilities.apex_status()
    assert not status.available
    assert str(package) in status.reason and "not NVIDIA's" in status.reason
    assert "apex" not in sys.modules


def test_apex_without_a_gpu(foreign_folder, monkeypatch):
    write_apex(foreign_folder, "torch.optim.SGD")
    as_cpu_machine(monkeypatch)
    status = capabilities.apex_status()
    assert not status.available and "no CUDA device" in status.reason


def test_apex_without_its_extensions(foreign_folder, monkeypatch):
    write_apex(foreign_folder, "torch.optim.SGD")
    as_gpu_machine(monkeypatch)
    status = capabilities.apex_status()
    assert not status.available and "amp_C" in status.reason


@pytest.mark.parametrize(
    ("lamb", "available", "reason"),
    [
        ("torch.optim.SGD", True, "FusedSGD and FusedLAMB"),
        ("None", False, "optimisers fail"),
        # Takes a step and changes nothing.
        ("type('Idle', (torch.optim.SGD,), {'step': lambda self: None})", False, "left the weights"),
    ],
)
def test_apex_counts_when_its_optimisers_step(foreign_folder, monkeypatch, lamb, available, reason):
    write_apex(foreign_folder, lamb)
    (foreign_folder / "amp_C.py").touch()
    as_gpu_machine(monkeypatch)
    monkeypatch.setattr(capabilities, "_fused_device", lambda: torch.device("cpu"))
    status = capabilities.apex_status()
    assert status.available is available
    assert reason in status.reason


def test_what_is_found_on_this_machine(capsys):
    assert doctor.main() == 0
    printed = capsys.readouterr().out
    found = doctor.look()
    assert found.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found.backends["reference"].available
    assert set(found.backends) == {"reference", "native", "triton"}
    for status in (*found.backends.values(), *found.data.values(), *found.optional.values()):
        assert status.reason and "\n" not in status.reason
        assert status.reason in printed
    assert f"{torch.get_num_threads()} torch threads" in found.cpu


def test_what_is_found_with_torch_alone(monkeypatch, foreign_folder):
    """Without the extras it answers all the same and names what is missing."""
    for name in ("triton", "nvidia.dali", "lightning", "torchvision"):
        monkeypatch.setitem(sys.modules, name, None)
    found = doctor.look()
    assert not found.backends["triton"].available
    install = "pip install 'amcl-fast[train]'; train-cuda12 in place of train beside CUDA 12"
    assert found.data["DALI cpu"].reason == f"DALI does not load: the data pipeline needs NVIDIA DALI: {install}"
    assert found.backends["reference"].available

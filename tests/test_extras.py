"""Without extras: every command works as far as it can, and says in one line which extra it lacks."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from amcl_fast import extras
from tests.helpers.isolated import Environment, closure

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
LOSSES = """
import sys, torch, amcl_fast
from amcl_fast import AdaptiveTemperature, BarlowTwinsLoss, MoCoLoss, SimCLRLoss, SimSiamLoss
x, y = torch.randn(2, 8, 2, 4)
tau = AdaptiveTemperature(4)
for loss in (
    SimCLRLoss(tau)(x, y), MoCoLoss(tau)(x, y, torch.randn(2, 4, 16)), SimSiamLoss(tau)(x, y, y, x),
    BarlowTwinsLoss(AdaptiveTemperature(8))(x, y),
):
    loss.backward()
    assert loss.isfinite()
assert all(hasattr(amcl_fast, name) for name in amcl_fast.__all__)
assert amcl_fast.losses.SimCLRLoss is SimCLRLoss and amcl_fast.__version__
"""
IMPORTS = """
import importlib
def told(name, *parts):
    try:
        module = importlib.import_module(name)
        [getattr(module, part) for part in parts]
    except ImportError as error:
        print(error)
    else:
        print(f"{name}: imported")
told("amcl_fast.data")
told("amcl_fast.data", "ContrastiveDataModule")
told("amcl_fast.data", "ContrastiveLoader")
told("amcl_fast.models", "KeyQueue")
told("amcl_fast.models", "build_backbone")
for name in ("callbacks", "evaluate", "export", "methods", "optim", "recipes", "report"):
    told(f"amcl_fast.{name}")
told("amcl_fast", "pretrain")
"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """After `pip install .`: torch, NumPy, Triton and what they need."""
    return Environment(tmp_path_factory.mktemp("plain"))


def test_the_environment_holds_the_losses_packages_alone(plain):
    names = {distribution.name for distribution in plain.distributions}
    assert {"torch", "numpy"} <= names
    assert not names & {"lightning", "PyYAML", "tqdm", "pillow", "torchvision", "nvidia-dali-cuda130", "safetensors"}
    found = plain.python(f"import importlib.util as u; print([m for m in {list(extras.EXTRAS)} if m in sys.modules])")
    assert found.stdout == "[]\n"
    assert extras.missing("torch", "lightning", "nowhere") == ["nowhere"]  # those of this one are not missing


def test_losses_and_python_names(plain):
    done = plain.python(LOSSES)
    assert done.returncode == 0, done.stderr
    done = plain.python(IMPORTS)
    install = "pip install 'amcl-fast[train]'"
    of_dali = f"{install}; train-cuda12 in place of train beside CUDA 12"
    assert done.stdout.splitlines() == [
        "amcl_fast.data: imported",
        f"amcl_fast.data.ContrastiveDataModule needs lightning: {install}",
        f"the data pipeline needs NVIDIA DALI: {of_dali}",
        "amcl_fast.models: imported",
        f"amcl_fast.models needs torchvision: {install}",
        f"amcl_fast.callbacks needs lightning: {install}",
        "amcl_fast.evaluate: imported",
        f"amcl_fast.models needs torchvision: {install}",
        f"amcl_fast.methods needs lightning: {install}",
        "amcl_fast.optim: imported",
        "amcl_fast.recipes: imported",
        f"amcl_fast.report needs matplotlib: {install}",
        f"training needs lightning: {install}",
    ], done.stderr


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--help"], "doctor"),
        (["pretrain", "--help"], "simclr, moco, simsiam, barlow"),
        (["evaluate", "--help"], "--crop_pct"),
        (["doctor"], "lightning      not installed"),
        (["bench", "--list"], "simclr-builtin-amcl"),
    ],
)
def test_what_works_without_extras(plain, arguments, shown, tmp_path):
    done = plain.command(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and shown in done.stdout


REFUSED = {
    "pretrain --recipe demo": ("training needs lightning, jsonargparse, PyYAML, torchvision, .*NVIDIA DALI", "train"),
    "pretrain --resume": ("training needs lightning", "train"),
    "pretrain --recipe demo --print_config": ("training needs lightning", "train"),
    "evaluate run": ("evaluation needs lightning, torchvision, tqdm, NVIDIA DALI", "train"),
    "export run": ("export needs torchvision, safetensors", "train,export"),
    "export run --format onnx": ("export needs torchvision, onnx, onnxscript", "train,export"),
    "report run": ("a report needs matplotlib, PyYAML", "train"),
    "bench pipeline": ("bench pipeline needs NVIDIA DALI, Pillow", "train"),
    "bench training": ("bench training needs lightning", "train"),
}


def test_what_needs_extras_names_them(plain, tmp_path):
    code = f"from amcl_fast.cli import main\nfor line in {list(REFUSED)}: print(main(line.split()))"
    done = plain.python(code, cwd=tmp_path)
    assert done.stdout.split() == ["2"] * len(REFUSED), done.stderr
    told = [line for line in done.stderr.splitlines() if "not quiet" not in line]
    for line, (command, (packages, extra)) in zip(told, REFUSED.items(), strict=True):
        start = f"amcl-fast {command.split()[0]}: error: {packages}"
        assert re.match(start, line) and f": pip install 'amcl-fast[{extra}]'" in line, line
        assert ("NVIDIA DALI" in line) == line.endswith("; train-cuda12 in place of train beside CUDA 12"), line


SEVERAL = """
from amcl_fast.cli import main
for line in (
    "export run", "export run --format onnx", "pretrain --recipe demo", "evaluate run",
):
    print(main(line.split()), file=sys.stderr)
import amcl_fast.callbacks, amcl_fast.methods, amcl_fast.report
from amcl_fast.models import BackboneConfig, build_backbone
build_backbone(BackboneConfig("timm/resnet10t"))
"""


def test_one_extra_without_another(tmp_path):
    """Training without export, without timm, without DALI's wheel."""
    train = Environment(tmp_path, "train", without=("nvidia-dali-cuda130",))
    of_dali = "pip install 'amcl-fast[train]'; train-cuda12 in place of train beside CUDA 12"
    lines = train.python(SEVERAL, cwd=tmp_path).stderr.splitlines()
    assert lines[:8] == [
        "amcl-fast export: error: export needs safetensors: pip install 'amcl-fast[export]'",
        "2",
        "amcl-fast export: error: export needs onnx, onnxscript: pip install 'amcl-fast[export]'",
        "2",
        f"amcl-fast pretrain: error: training needs NVIDIA DALI: {of_dali}",
        "2",
        f"amcl-fast evaluate: error: evaluation needs NVIDIA DALI: {of_dali}",
        "2",
    ]
    assert lines[-1] == "ImportError: backbone timm/resnet10t needs timm: pip install 'amcl-fast[timm]'"


def test_python_without_docstrings_is_told_in_one_line(tmp_path):
    """NVIDIA DALI cannot be imported then; what needs none works, asserts or not."""
    code = (
        "import sys, torch\nfrom amcl_fast import SimCLRLoss\nfrom amcl_fast.cli import main\n"
        "SimCLRLoss(0.1)(*torch.randn(2, 8, 4)).item()\n"
        "print(main(['pretrain', '--recipe', 'demo']), main(['doctor']), file=sys.stderr)\n"
        "from amcl_fast.data import ContrastiveLoader\n"
    )
    environment = {**os.environ, "PYTHONOPTIMIZE": "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    told = done.stderr.splitlines()
    stripped = "needs docstrings, of which NVIDIA DALI makes its own: python -O at the most, got -OO"
    assert told[:2] == [f"amcl-fast pretrain: error: training {stripped}", "2 0"], done.stderr
    assert told[-1] == f"ImportError: the data pipeline {stripped}" and f"the data pipeline {stripped}" in done.stdout


def test_a_platform_without_dali(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(ImportError, match=r"^x needs NVIDIA DALI; of NVIDIA DALI there is none for darwin"):
        extras.require("x", "nvidia.dali")


def test_every_import_of_the_package_has_its_extra():
    """What no extra brings is torch's closure or Python's own; what an extra brings is in its closure."""
    own = {"amcl_fast", "benchmarks", "kernels", "apex", "amp_C", *sys.stdlib_module_names, "torch", "numpy", "triton"}
    own |= {"inf_cl", "liger_kernel"}  # peers for a GPU alone, measured where somebody has them
    found = set()
    for path in (path for part in ("amcl_fast", "benchmarks") for path in (ROOT / part).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {(alias.name, path.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add((node.module, path.name))
    known = (*extras.EXTRAS, "pytest")
    unknown = {
        e for e in found if e[0].split(".")[0] not in own and not f"{e[0]}.".startswith(tuple(f"{m}." for m in known))
    }
    assert not unknown
    packages = {
        "yaml": "pyyaml",
        "PIL": "pillow",
        "nvidia.dali": "nvidia-dali-cuda130",
        "pytest_benchmark": "pytest-benchmark",
    }
    for module, extra in extras.EXTRAS.items():
        names = {Requirement(distribution.name).name.lower() for distribution in closure(f"amcl-fast[{extra}]")}
        assert packages.get(module, module).lower() in names, module

"""Wheels and editable installs, with and without a compiler, and the Makefile that makes them."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import amcl_fast

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
NATIVE = "_native" + sysconfig.get_config_var("EXT_SUFFIX")
NOTE = "_native_missing.txt"
PROGRAM = """
from typing import assert_type

from torch import Tensor

import amcl_fast
from amcl_fast import AdaptiveTemperature, BarlowTwinsLoss, MoCoLoss, SimCLRLoss, SimSiamLoss, ops
from amcl_fast.benchmarks import timing
from amcl_fast.kernels import dense
from amcl_fast.methods import Method, SimCLR

criterion = SimCLRLoss(AdaptiveTemperature(64, score="cosine", precision="tf32"), negatives="topk_softmax", top_k=10)


def step(z1: Tensor, z2: Tensor, queue: Tensor) -> Tensor:
    assert_type(MoCoLoss(0.1, backend="native")(z1, z2, queue), Tensor)
    assert_type(SimSiamLoss()(z1, z2, z1, z2), Tensor)
    assert_type(BarlowTwinsLoss()(z1, z2), Tensor)
    return assert_type(criterion(z1, z2), Tensor)


def method(loss: amcl_fast.losses.SimCLRLoss) -> Method:
    return SimCLR(loss)


SimCLRLoss(temperature="0.1")  # wrong: "temperature" to "SimCLRLoss"
SimCLRLoss(0.1, negatives="hard")  # wrong: "negatives" to "SimCLRLoss"
MoCoLoss.recommended(64, backend="cuda")  # wrong: "backend" to "recommended" of "MoCoLoss"
AdaptiveTemperature(64, score="euclidean")  # wrong: "score" to "AdaptiveTemperature"
AdaptiveTemperature(64, precision="half")  # wrong: "precision" to "AdaptiveTemperature"
"""
EMPTY_MODULE = "#include <pybind11/pybind11.h>\nPYBIND11_MODULE(_native, module) {}\n"
# Folders of the top level that are installed as packages inside amcl_fast.
PARTS = ("kernels", "benchmarks")
IMPORT = (
    "import amcl_fast.kernels, amcl_fast.benchmarks, amcl_fast.capabilities as c;"
    "parts = amcl_fast, amcl_fast.kernels, amcl_fast.benchmarks;"
    "print(*(part.__file__ for part in parts), c.native_status(), sep='\\n')"
)


@pytest.fixture
def source(tmp_path) -> Path:
    """A copy of what an install is made of, without what earlier builds left."""
    folder = tmp_path / "source"
    built = shutil.ignore_patterns("__pycache__", "*.so", NOTE)
    for name in ("amcl_fast", "csrc", "kernels", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=built)
    for name in (
        "setup.py",
        "pyproject.toml",
        "CMakeLists.txt",
        "Makefile",
        "constraints.txt",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
    ):
        shutil.copy2(ROOT / name, folder)
    return folder


@pytest.fixture
def python(tmp_path) -> Path:
    """The Python of a new environment with torch and the build tools, and no amcl_fast."""
    venv.create(tmp_path / "environment", with_pip=False)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    # A .pth file gives the outer environment's packages without its editable installs.
    outer = tmp_path / "environment" / "lib" / version / "site-packages" / "outer.pth"
    outer.write_text(sysconfig.get_path("purelib") + "\n")
    return tmp_path / "environment" / "bin" / "python"


def pip(python: Path, *arguments: str | Path, **environment: str) -> str:
    """Run pip for `python`, without build isolation; return what it and the build print."""
    command = [sys.executable, "-m", "pip", "--python", python, *arguments]
    result = subprocess.run(
        [*command, "--verbose", "--no-build-isolation", "--no-deps"],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def import_from(python: Path, folder: Path) -> list[str]:
    """Import the package in `folder`; return the files of the packages and native_status()."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run([python, "-c", IMPORT], cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.fixture
def types_of_others(tmp_path) -> Path:
    """A cache of mypy with what `make lint` has found of torch and others, which are large."""
    folder = tmp_path / "mypy"
    if (ROOT / ".mypy_cache").exists():
        shutil.copytree(ROOT / ".mypy_cache", folder)
    return folder


def check_types_of_a_program(python: Path, folder: Path, cache: Path) -> None:
    """mypy finds the package and its types, and so the mistakes in PROGRAM and no others."""
    program = folder / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", "--cache-dir", cache]
    command += ["--python-executable", python, program]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    *found, verdict = result.stdout.splitlines()
    numbered = enumerate(PROGRAM.splitlines(), 1)
    wrong = [(line, text.partition("# wrong: ")[2]) for line, text in numbered if "# wrong: " in text]
    assert len(found) == len(wrong) and verdict.startswith(f"Found {len(wrong)} errors")
    for mistake, (line, argument) in zip(found, wrong, strict=True):
        assert mistake.startswith(f"program.py:{line}: error: Argument {argument} has incompatible type")


def build_only(source: Path, file: str, text: str) -> None:
    """Make the native module of one small file: the install that runs this test has built the real one."""
    (source / "csrc" / file).write_text(text)
    cmake = source / "CMakeLists.txt"
    one = rf"pybind11_add_module(_native csrc/{file})\nreturn()"
    cmake.write_text(re.sub(r"pybind11_add_module\(_native[^)]*\)", one, cmake.read_text()))


def source_archive(source: Path, folder: Path) -> Path:
    build = f"import setuptools.build_meta as backend; print(backend.build_sdist({str(folder)!r}))"
    result = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder / result.stdout.splitlines()[-1]


def test_wheel_of_the_source_archive_holds_every_file_and_imports(tmp_path, source, python, types_of_others):
    build_only(source, "empty.cpp", EMPTY_MODULE)
    pip(python, "wheel", "--wheel-dir", tmp_path, source_archive(source, tmp_path))
    (wheel,) = tmp_path.glob("amcl_fast-*.whl")
    assert wheel.name.split("-")[1] == amcl_fast.__version__
    modules = {path.relative_to(source) for path in (source / "amcl_fast").rglob("*") if path.is_file()}
    parts = {Path("amcl_fast", p.relative_to(source)) for name in PARTS for p in (source / name).rglob("*.py")}
    held = {Path(name) for name in zipfile.ZipFile(wheel).namelist()}
    assert {path for path in held if path.parts[0] == "amcl_fast"} == {
        *modules,
        *parts,
        Path("amcl_fast", NATIVE),
    }
    assert {path.parts[0] for path in held} == {"amcl_fast", wheel.name.split("-cp")[0] + ".dist-info"}

    pip(python, "install", wheel)
    site = next((tmp_path / "environment" / "lib").glob("*/site-packages"))
    files = [str(site / "amcl_fast" / name / "__init__.py") for name in (".", *PARTS)]
    *found, native = import_from(python, tmp_path)
    assert found == files
    assert "available=True" in native
    check_types_of_a_program(python, tmp_path, types_of_others)


def test_install_without_compiler(tmp_path, source, python):
    output = pip(python, "install", source, CXX="/bin/false")
    assert "built WITHOUT amcl_fast._native: no working C++ compiler" in output
    assert "reference backend" in output
    *_, native = import_from(python, tmp_path)
    assert "built without: no working C++ compiler" in native


def test_install_of_source_that_does_not_compile(tmp_path, source, python):
    build_only(source, "broken.cpp", "#error nothing compiles here\n")
    output = pip(python, "install", source)
    assert "could not build the native module" in output
    *_, native = import_from(python, tmp_path)
    assert "nothing compiles here" in native


def test_editable_install(tmp_path, source, python, types_of_others):
    build_only(source, "empty.cpp", EMPTY_MODULE)
    stale = source / "amcl_fast" / NATIVE
    stale.write_bytes(b"of an earlier build")
    files = [str(source / name / "__init__.py") for name in ("amcl_fast", *PARTS)]

    pip(python, "install", "--editable", source, CXX="/bin/false")
    assert not stale.exists()
    *found, native = import_from(python, tmp_path)
    assert found == files
    assert "built without: no working C++ compiler" in native

    pip(python, "install", "--editable", source)
    assert not (source / "amcl_fast" / NOTE).exists()
    # Here from the root of the sources, where the folder amcl_fast comes before what is installed.
    *found, native = import_from(python, source)
    assert found == files
    assert "available=True" in native
    check_types_of_a_program(python, tmp_path, types_of_others)


def requirements(extra: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("extra", ["", "train", "timm", "export", "hub", "bench", "test", "docs"])
def test_every_requirement_has_a_pin_that_meets_it(extra):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    versions = {canonicalize_name(name): version for name, version in pins.items()}
    for requirement in requirements(extra):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


def test_never_apex_and_no_torch_to_build():
    """PyPI's apex is an unrelated package; torch in the build requirements would download gigabytes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for extra in ("", "train", "timm", "hub", "bench", "test", "docs", "all"):
        assert "apex" not in {requirement.name for requirement in requirements(extra)}
    build = {Requirement(line).name for line in project["build-system"]["requires"]}
    assert build == {"setuptools", "pybind11", "cmake", "ninja"}


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True)


def test_make_refuses_an_old_python(tmp_path, source):
    old = tmp_path / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.1 && exit 0\nexit 1\n')
    old.chmod(0o755)
    result = make(source, "test", f"PYTHON={old}")
    assert result.returncode != 0
    assert "needs Python 3.11 or newer" in result.stderr and "Python 3.8.1" in result.stderr
    assert not (source / ".venv").exists()


def test_make_installs_once(source):
    """The second call installs nothing, until a file changes that the install is made of."""
    assert "pip install" in make(source, "-n", "test").stdout
    (source / ".venv" / "bin").mkdir(parents=True)
    (source / ".venv" / "bin" / "python").touch()
    (source / ".venv" / "others").mkdir()
    for installed in (".installed", "others/.installed"):
        (source / ".venv" / installed).touch()
    assert "pip install" not in make(source, "-n", "test").stdout
    changed = next((source / "csrc").iterdir())
    later = (source / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(changed, (later, later))
    assert "pip install" in make(source, "-n", "test").stdout

"""Build of amcl-fast: the Python packages and, where CMake and a compiler are at hand, `amcl_fast._native`.

Metadata is in pyproject.toml. A machine that cannot build the native module gets an install without it: the
reason is printed and kept in the package, where `amcl-fast doctor` finds it, and the losses run on the
reference backend.
"""

import contextlib
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Extension, find_packages, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# amcl_fast/capabilities.py reads the reason from a file of this name.
NOTE_NAME = "_native_missing.txt"
STUBS = "amcl_fast-stubs"
# Never a top-level `kernels`: another well-known package owns that name.
PARTS = {"amcl_fast.kernels": "kernels", "amcl_fast.benchmarks": "benchmarks"}


class BuildProblem(Exception):
    """The native module cannot be built here; the message says why."""


def find_tool(name: str, directory_attribute: str) -> str | None:
    """Return the path of a build tool, or None.

    The Python package of that name comes first: with --no-build-isolation its programs need not be on PATH.
    """
    try:
        directory = getattr(importlib.import_module(name), directory_attribute, None)
    except ImportError:
        directory = None
    return (directory and shutil.which(name, path=directory)) or shutil.which(name)


def has_compiler() -> bool:
    """Return whether the compiler that $CXX names, or else c++, g++ or clang++, runs at all."""
    commands = [shlex.split(os.environ["CXX"])] if os.environ.get("CXX") else [["c++"], ["g++"], ["clang++"]]
    for command in commands:
        with contextlib.suppress(OSError):
            if subprocess.run([*command, "--version"], capture_output=True).returncode == 0:
                return True
    return False


def run(step: str, command: list[str]) -> None:
    """Run one CMake step; raise BuildProblem with its first error line."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(result.stdout, flush=True)
    if result.returncode:
        lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
        errors = [number for number, line in enumerate(lines) if re.search("CMake Error|error:", line)]
        start = errors[0] if errors else len(lines) - 1
        # "CMake Error at FILE:LINE (message):" has its text on the next lines.
        length = 3 if lines[start].startswith("CMake Error") else 1
        cause = " ".join(lines[start : start + length])
        raise BuildProblem(f"CMake could not {step} the native module: {cause}")


def build_native(module: Path) -> None:
    """Build the native module at the path `module`, or raise BuildProblem."""
    missing = []
    cmake = find_tool("cmake", "CMAKE_BIN_DIR") or ""
    if not cmake:
        missing.append("no CMake")
    if not has_compiler():
        missing.append("no working C++ compiler ($CXX, or else c++, g++ or clang++)")
    try:
        pybind11_dir = importlib.import_module("pybind11").get_cmake_dir()
    except ImportError:
        missing.append("no pybind11")
    if missing:
        raise BuildProblem(", ".join(missing) + " when installed")

    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_LIBRARY_OUTPUT_DIRECTORY": str(module.parent),
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11_dir,
    }
    generator = []
    if ninja := find_tool("ninja", "BIN_DIR"):
        generator = ["-G", "Ninja"]
        options["CMAKE_MAKE_PROGRAM"] = ninja
    definitions = [f"-D{key}={value}" for key, value in options.items()]
    # A new folder each time: CMake's cache would hold paths into an isolated build environment that is gone.
    with tempfile.TemporaryDirectory() as folder:
        run("configure", [cmake, "-S", str(ROOT), "-B", folder, *generator, *definitions])
        jobs = str(os.cpu_count() or 1)
        run("build", [cmake, "--build", folder, "--target", "_native", "--parallel", jobs])
    if not module.exists():
        raise BuildProblem(f"CMake built no {module.name}")


def announce(message: str) -> None:
    """Say the message on stderr and on the terminal: pip swallows the output of a build that succeeds."""
    print(message, file=sys.stderr, flush=True)
    if not sys.stderr.isatty():
        with contextlib.suppress(OSError), open("/dev/tty", "w") as terminal:
            print(message, file=terminal)


class CMakeBuild(build_ext):
    """build_ext by CMake that leaves either the module or a note with the reason why there is none."""

    def build_extension(self, ext: Extension) -> None:
        module = Path(self.get_ext_fullpath(ext.name)).resolve()
        note = module.with_name(NOTE_NAME)
        module.parent.mkdir(parents=True, exist_ok=True)
        module.unlink(missing_ok=True)
        note.unlink(missing_ok=True)
        try:
            build_native(module)
        except BuildProblem as problem:
            note.write_text(f"{problem}\n", "utf-8")
            announce(
                f"amcl-fast: built WITHOUT amcl_fast._native: {problem}.\n"
                "amcl-fast: everything runs on the reference backend. For the native one, install what is "
                "missing and install amcl-fast again."
            )

    def copy_extensions_to_source(self) -> None:
        """Put the module or the note beside the sources, for an editable install."""
        built = Path(self.build_lib, "amcl_fast").resolve()
        for name in ("_native" + sysconfig.get_config_var("EXT_SUFFIX"), NOTE_NAME):
            # Unlink first: writing into a module that a running process has mapped would crash that process.
            (ROOT / "amcl_fast" / name).unlink(missing_ok=True)
            if (built / name).exists():
                shutil.copy2(built / name, ROOT / "amcl_fast" / name)


class BuildTypes(Command):
    """Show the sources of an editable install to type checkers, which cannot see what its finder does at run time.

    The links are a stub package (PEP 561), whose name no program imports: they change nothing at run time. They lie in
    two folders, because a stub package starts with an __init__.pyi and a part of amcl_fast lies outside of it.
    """

    user_options: ClassVar[list[tuple[str, str | None, str]]] = []
    editable_mode = False

    def initialize_options(self) -> None: ...

    def finalize_options(self) -> None: ...

    def run(self) -> None:
        if not self.editable_mode:
            return
        folder = ROOT / "build" / "types"
        shutil.rmtree(folder, ignore_errors=True)
        links = {folder / "package" / STUBS: ROOT / "amcl_fast"}
        links |= {folder / "parts" / STUBS / name.split(".")[-1]: ROOT / path for name, path in PARTS.items()}
        links[folder / "parts" / STUBS / "__init__.pyi"] = ROOT / "amcl_fast" / "__init__.py"
        try:
            for link, target in links.items():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(target)
        except OSError as error:
            announce(f"amcl-fast: type checkers will not find amcl_fast: {error}")
            return
        # What lies in the folder of `install` goes into an editable wheel as it is.
        search_path = Path(self.get_finalized_command("install").install_lib, "__editable__.amcl_fast.types.pth")
        search_path.parent.mkdir(parents=True, exist_ok=True)
        search_path.write_text(f"{folder / 'package'}\n{folder / 'parts'}\n")


class Build(build):
    """build, and what type checkers need."""

    sub_commands: ClassVar = [*build.sub_commands, ("build_types", None)]


parts = [name for part, folder in PARTS.items() for name in (part, *(f"{part}.{n}" for n in find_packages(folder)))]
# Listed as sources so that an sdist holds them; CMake alone decides what is compiled.
native_sources = [str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()]

setup(
    # Here because setuptools before 77 rejects the SPDX string in pyproject.toml, and later ones deprecate
    # the table that those want.
    license="Apache-2.0",
    packages=[*find_packages(include=["amcl_fast", "amcl_fast.*"]), *parts],
    package_dir=PARTS,
    ext_modules=[Extension("amcl_fast._native", ["CMakeLists.txt", *sorted(native_sources)], optional=True)],
    cmdclass={"build": Build, "build_ext": CMakeBuild, "build_types": BuildTypes},
)

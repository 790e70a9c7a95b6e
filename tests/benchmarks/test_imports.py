"""Modules of the benchmarks: none needs another one first, and none is imported in a circle."""

import ast
import graphlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
MODULES = {
    ".".join(path.relative_to(FOLDER.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in FOLDER.rglob("*.py")
}


def imported(name: str) -> set[str]:
    """Modules of the benchmarks that a module imports, at whatever time, without their packages."""
    path, found = MODULES[name], set()
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).rstrip(".")
            found |= {
                f"{module}.{alias.name}" if f"{module}.{alias.name}" in MODULES else module for alias in node.names
            }
    return found & MODULES.keys()


def test_no_circles():
    """Not even by an import within a function."""
    graph = {name: imported(name) for name in MODULES}
    assert graph["benchmarks.measure.operators"] >= {"benchmarks.memory", "benchmarks.peers", "benchmarks.step"}
    graphlib.TopologicalSorter(graph).prepare()


def test_a_side_of_a_comparison_needs_no_more_than_old_commits_have():
    """The present benchmarks measure a commit of long ago: of it they may import what has always been public."""
    waiting, reached, found = ["benchmarks.compare"], set(), set()
    while waiting:
        if (name := waiting.pop()) not in reached:
            reached.add(name)
            waiting += imported(name)
            for node in ast.parse(MODULES[name].read_text()).body:
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "amcl_fast":
                    found |= {f"{node.module}.{alias.name}" for alias in node.names}
                elif isinstance(node, ast.Import):
                    found |= {alias.name for alias in node.names if alias.name.startswith("amcl_fast")}
    assert {"benchmarks.peers", "benchmarks.ours", "benchmarks.check"} < reached
    public = ("AdaptiveTemperature", "BarlowTwinsLoss", "MoCoLoss", "SimCLRLoss", "ops")
    assert found == {f"amcl_fast.{name}" for name in public}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lightning") is None, reason="a callback of a rehearsal needs it")
def test_every_module_can_be_the_first():
    names = sorted(MODULES.keys() - {"benchmarks.test_benchmarks"})
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    for old in [old for old in sys.modules if old.split('.')[0] == 'benchmarks']:\n"
        "        del sys.modules[old]\n"
        "    importlib.import_module(name)\n"
        "    print(name)\n"
    )
    command = [sys.executable, "-c", program, *names]
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True)
    assert done.stdout.split() == names, done.stderr

"""amcl_fast.runs.directory: one place knows the names of a run's files, without torch."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from amcl_fast.runs.directory import LATEST, RunDirectory, aside
from amcl_fast.runs.files import partial_name
from amcl_fast.runs.resuming import find_run

ROOT = Path(__file__).parents[2]
OWNERS = {"amcl_fast/runs/directory.py", "amcl_fast/runs/files.py", "amcl_fast/runs/lock.py"}
_NAMES = re.compile(
    r"config\.yaml|metrics\.csv|run\.json|skipped_files\.txt|last\.ckpt|evaluation-|index\.html|summary\.json"
    r"|\.(ckpt|npz|lock|partial)\b"
)
_FOLDERS = {"checkpoints", "snapshots", "report", "tensorboard"}


def literals(source: str) -> list[str]:
    """What a source says of the files of a run by name: in text that is no docstring, or joined to a path."""
    tree = ast.parse(source)
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said
    ]
    joined = [
        node.right.value
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant)
    ]
    return [text for text in texts if _NAMES.search(text)] + [name for name in joined if name in _FOLDERS]


def test_a_name_is_found_in_every_form():
    source = (
        'def f(run):\n    """Keeps metrics.csv."""\n    """last.ckpt"""\n'
        '    g(run / "report", f"{run}/last.ckpt", "report", "checkpoints are kept")\n'
    )
    assert literals(source) == ["/last.ckpt", "report"]


def test_no_other_source_names_the_files_of_a_run():
    sources = [path for folder in ("amcl_fast", "kernels", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert {str(path.relative_to(ROOT)) for path in sources} >= OWNERS
    found = {str(path.relative_to(ROOT)): literals(path.read_text()) for path in sources}
    assert {name: texts for name, texts in found.items() if texts and name not in OWNERS} == {}


def test_names_are_known_without_torch_or_numpy():
    code = "import sys, amcl_fast.runs.directory\nprint({'torch', 'numpy', 'yaml'} & {*sys.modules})\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_files_of_a_run_lie_where_they_always_have(tmp_path):
    files = RunDirectory(tmp_path)
    named = [files.config, files.metrics, files.facts, files.skipped, files.lock, files.last, files.epoch(12)]
    named += [files.snapshot("before"), files.page, files.events, files.evaluation("images")]
    assert [str(path.relative_to(tmp_path)) for path in named] == [
        "config.yaml", "metrics.csv", "run.json", "skipped_files.txt", ".lock", "checkpoints/last.ckpt",
        "checkpoints/epoch-0012.ckpt", "snapshots/before.npz", "report/index.html", "tensorboard",
        "evaluation-images.json",
    ]  # fmt: skip
    assert RunDirectory.of(files.last) == files
    assert aside(files.last, 40) == tmp_path / "checkpoints" / "last-step-40.ckpt"


def test_a_checkpoint_may_lie_where_no_folder_is_above(monkeypatch):
    path = Path("/weights.ckpt")
    assert RunDirectory.of(path) == RunDirectory(Path("/"))
    monkeypatch.setattr(Path, "is_file", lambda self: self == path)
    with pytest.raises(FileNotFoundError, match=r"^/weights.ckpt does not lie in a run directory"):
        find_run(str(path), None)


@pytest.mark.parametrize("recipe", ["demo", "demo[2]"])
def test_the_latest_run_of_a_recipe_is_not_of_one_with_a_longer_name(tmp_path, monkeypatch, recipe):
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate((f"{recipe}-vitxs4-20260101-000000", f"{recipe}-20260101-000000")):
        last = RunDirectory(Path("runs") / name).last
        last.parent.mkdir(parents=True)
        last.touch()
        os.utime(last, (0, 100 - age))
    assert find_run(LATEST, recipe)[0] == Path("runs") / f"{recipe}-20260101-000000"


@pytest.mark.parametrize("name", ["images", "a-b", "evaluation-x", "x.json"])
def test_evaluations_are_found_by_their_data(tmp_path, name):
    (tmp_path / "other.json").touch()
    path = RunDirectory(tmp_path).evaluation(name)
    path.touch()
    assert RunDirectory(tmp_path).evaluations == {name: path}


def test_what_killed_processes_left_is_removed_from_every_folder(tmp_path):
    files = RunDirectory(tmp_path)
    for path in (files.config, files.last, files.snapshot("before"), files.page):
        path.parent.mkdir(exist_ok=True)
        path.touch()
        partial_name(path).touch()
    assert len(list(tmp_path.rglob("*.partial"))) == 4
    files.clear()
    assert not list(tmp_path.rglob("*.partial")) and len([p for p in tmp_path.rglob("*") if p.is_file()]) == 4

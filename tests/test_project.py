"""What is written of the project in several files agrees."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import amcl_fast

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_the_workflows_are_there():
    assert {path.stem for path in WORKFLOWS} == {"test", "wheels"}


def test_one_version():
    changes = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert changes[:2] == ["Unreleased", amcl_fast.__version__]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == amcl_fast.__version__
    # The others have none of their own.
    assert "version" not in PROJECT["project"] and "version" in PROJECT["project"]["dynamic"]
    assert not re.search(r"project\([^)]*VERSION", (ROOT / "CMakeLists.txt").read_text())


def test_a_commit_is_looked_at_by_the_linters_of_the_makefile_at_their_pinned_versions():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = {hook["name"]: hook for hook in repository["hooks"]}
    linters = set(re.findall(r"\$\(BIN\)/(ruff \w+|mypy)\b", (ROOT / "Makefile").read_text()))
    assert set(hooks) == linters == {"ruff check", "ruff format", "mypy"}
    for hook in hooks.values():
        assert hook["name"] in hook["entry"]
        for requirement in hook.get("additional_dependencies", ()):
            name, version = requirement.split("==")
            assert version == PINS[name]


def steps(workflow: Path) -> list[dict[str, str]]:
    return [step for job in yaml.safe_load(workflow.read_text())["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_names_exact_versions(workflow):
    for step in steps(workflow):
        assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+", step.get("uses", "own/step@v0.0.0")), step
        for installed in re.findall(r"pip install (.+)", step.get("run", "")):
            assert re.fullmatch(r"[\w-]+==[\d.]+", installed)


def test_the_tests_run_by_the_makefile_on_pythons_that_get_a_wheel():
    workflow = ROOT / ".github" / "workflows" / "test.yml"
    assert any("make test" in step.get("run", "") for step in steps(workflow))
    pythons = yaml.safe_load(workflow.read_text())["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert pythons[0] == PROJECT["project"]["requires-python"].removeprefix(">=")
    built = PROJECT["tool"]["cibuildwheel"]["build"].split()
    assert {f"cp{python.replace('.', '')}-*" for python in pythons} <= set(built)

"""What is written of the project in several files agrees."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import amcl_fast

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
PARTS = ("kernels", "benchmarks")  # that are installed as packages inside amcl_fast
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


def test_what_an_index_shows_of_the_package():
    project = PROJECT["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert [author["name"] for author in project["authors"]] == [author["name"] for author in citation["authors"]]
    assert {*citation["keywords"]} <= {*project["keywords"]}
    assert project["urls"]["Paper"] == citation["preferred-citation"]["url"]
    pythons = re.findall(r"cp3(\d+)-", PROJECT["tool"]["cibuildwheel"]["build"])
    assert [f"Programming Language :: Python :: 3.{minor}" for minor in pythons] == [
        name for name in project["classifiers"] if re.search(r":: 3\.\d+$", name)
    ]
    assert not any(
        name.startswith("License") for name in project["classifiers"]
    )  # beside an SPDX string PyPI refuses it


def test_the_extra_for_cuda_12_is_that_for_13_with_another_dali():
    extras = PROJECT["project"]["optional-dependencies"]
    assert extras["train-cuda12"] == [line.replace("cuda130", "cuda120") for line in extras["train"]]
    assert extras["train-cuda12"] != extras["train"]


def test_the_image_is_made_of_what_an_install_takes_and_runs_the_command_as_nobody_special():
    lines = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text()).splitlines()
    orders = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    known = {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "ENTRYPOINT", "CMD"}
    assert {order for order, _ in orders} == known
    copied = [name for order, rest in orders if order == "COPY" and "--from" not in rest for name in rest.split()[:-1]]
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(copied) == sorted(kept) and all((ROOT / name).exists() for name in copied)
    # Of which tests/test_packaging.py makes installs, less what is no part of one.
    assert {"setup.py", "pyproject.toml", "CMakeLists.txt", "README.md", "amcl_fast", "csrc", *PARTS} <= {*copied}
    values = dict(rest.split("=", 1) for order, rest in orders if order == "ARG")
    assert {*values["EXTRAS"].split(",")} <= PROJECT["project"]["optional-dependencies"].keys()
    assert PINS["cuda-toolkit"] == values["CUDA"]
    for rest in (rest for order, rest in orders if order == "FROM"):
        assert rest.startswith("nvidia/cuda:${CUDA}-")
    assert json.loads(next(rest for order, rest in orders if order == "ENTRYPOINT")) == [*PROJECT["project"]["scripts"]]
    user = next(rest for order, rest in orders if order == "USER")
    assert user != "root" and any(f" {user} " in f"{rest} " for order, rest in orders if order == "RUN")

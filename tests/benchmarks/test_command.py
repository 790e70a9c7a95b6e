import json
from dataclasses import replace

import pytest
import torch

from amcl_fast import capabilities
from amcl_fast.capabilities import Status
from amcl_fast.cli import main
from benchmarks import command
from benchmarks.measure import operators
from benchmarks.peers import implementation
from tests.helpers.benchmarks.tiny import SIMCLR


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def one_case(monkeypatch):
    monkeypatch.setattr(command, "select", lambda device, substring: [replace(SIMCLR, peers=("dense",))])
    monkeypatch.setattr(operators.memory, "in_fresh_process", lambda case, name: 1000)


def measure(tmp_path, substring=""):
    return command.measure(("operators",), substring, "auto", 0.01, None, tmp_path)


def test_a_section_is_measured_and_written(one_case, tmp_path, capsys):
    assert measure(tmp_path)
    (path,) = tmp_path.glob("*.json")
    section = json.loads(path.read_text())["sections"]["operators"]
    assert [row["case"] for row in section["rows"]] == ["SimCLR, N = 512"]
    assert section["environment"]["torch"] == torch.__version__
    printed = capsys.readouterr().out
    assert "[1/1] SimCLR, N = 512\n" in printed and f"written: {path}, operators" in printed


def test_a_part_of_a_section_is_not_written(one_case, tmp_path):
    assert measure(tmp_path, "SimCLR")
    assert not list(tmp_path.glob("*.json"))


def test_a_wrong_case_fails_and_nothing_is_written(one_case, tmp_path, monkeypatch, capsys):
    def wrong(name, case):
        run = implementation(name, case)
        return (lambda *operands: 1.01 * run(*operands)) if name == "auto" else run

    monkeypatch.setattr(operators, "implementation", wrong)
    assert not measure(tmp_path)
    assert not list(tmp_path.glob("*.json"))
    assert "FAILED  SimCLR, N = 512: relative error 1.0e-02" in capsys.readouterr().err


def test_a_backend_gets_the_cases_that_it_takes(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "select", lambda device, substring: [replace(SIMCLR, dtype="float64")])
    monkeypatch.setattr(capabilities, "triton_status", lambda: Status(False, "none here"))
    assert command.measure(("operators",), "", "triton", 0.01, None, tmp_path)
    assert (
        "not run: tensors must be one of float32, bfloat16, float16 for backend 'triton', got torch.float64"
        in capsys.readouterr().out
    )
    monkeypatch.setattr(command, "select", lambda device, substring: [SIMCLR])
    with pytest.raises(ValueError, match="backend 'triton' is not available: none here"):
        command.measure(("operators",), "", "triton", 0.01, None, tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_exit_code_of_a_failed_check(monkeypatch):
    from amcl_fast.benchmarks import command as installed

    monkeypatch.setattr(installed, "measure", lambda *_: False)
    assert main(["bench", "operators"]) == 1


def test_list(capsys):
    assert main(["bench", "--list"]) == 0
    printed = capsys.readouterr().out
    for name in ("operators\n  SimCLR, N = 512\n", "pipeline\n  32 px, resize only\n", "scaling\n  N\n"):
        assert name in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["operators", "--case", "nosuch"], "case must be part of one of these names, those for"),
        (["pipeline", "--case", "nosuch"], "case must be part of one of these names: 32 px, resize only"),
        (["pipeline", "--images", "2000"], "--images must be left out without the section scale, got 2,000"),
        (["--seconds", "0"], "seconds must be above 0, got 0"),
        (["--data", "nowhere"], "data must be a folder of classes of images, got 'nowhere'"),
        (["--report"], "must hold the JSON of a machine"),
        (["--compare", "a", "b"], "could not check out 'a'"),
        (["--compare", "a", "b", "--seconds", "-1"], "seconds must be above 0, got -1"),
    ],
)
def test_errors_in_one_line(arguments, message, capsys):
    assert main(["bench", *arguments]) == 2
    assert f"amcl-fast bench: error: {message}" in capsys.readouterr().err.replace("error: . must", "error: must")


def test_photographs_are_asked_for(capsys):
    assert command.measure(("pipeline",), "224 px, a", "auto", 0.1, None, None)
    assert "224 px, a: not run, for want of photographs: --data PATH" in capsys.readouterr().out


def test_a_section_without_its_packages_is_left_out_of_several(one_case, monkeypatch, tmp_path, capsys):
    def missing(*_):
        raise ImportError("no such package")

    monkeypatch.setitem(command._MEASURES, "pipeline", missing)
    assert command.measure(("pipeline", "operators"), "", "auto", 0.01, None, tmp_path)
    assert "pipeline: not run: no such package" in capsys.readouterr().out
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["sections"].keys() == {"operators"}
    with pytest.raises(ImportError, match="no such package"):
        command.measure(("pipeline",), "", "auto", 0.01, None, tmp_path)

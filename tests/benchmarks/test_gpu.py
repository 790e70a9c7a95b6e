import importlib.util
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from tiny import SIMCLR, document

from benchmarks import check, gpu
from benchmarks.cases import CASES

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")


def test_checks_pass_in_the_interpreter_and_can_fail(monkeypatch):
    case = replace(SIMCLR, heads=1, rows=10, settings=SIMCLR.settings | {"top_k": 3})
    [row] = gpu.check("cpu", [case], (torch.float32,))
    assert row["error"] < 1e-5
    monkeypatch.setitem(check.FLOOR, torch.float32, -1.0)
    with pytest.raises(SystemExit, match="1 problems in 1 checks; nothing was timed"):
        gpu.check("cpu", [case], (torch.float32,))


def test_small_cases_cover_every_form():
    cases = gpu.small_cases()
    assert {case.operator for case in cases} == {"contrast", "align", "decorrelate"}
    assert {case.adaptive for case in cases} == {True, False}
    assert len({case.name for case in cases}) == len(cases)


def test_says_what_is_missing():
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "needs an NVIDIA GPU" in done.stderr


def test_needs_neither_trainer_nor_pipeline_nor_plots():
    """What a GPU machine may lack."""
    absent = ("lightning", "nvidia.dali", "torchvision", "matplotlib", "yaml", "jsonargparse", "lightly", "tqdm", "PIL")
    program = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import benchmarks.gpu"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def pretend(monkeypatch):
    """A GPU that is not there: `main` runs, and what would touch the device is replaced."""
    rows = document()["sections"]["operators"]["rows"]
    timed = []

    def measure(case, device, backend, seconds, bandwidth):
        timed.append((case.name, device, backend, bandwidth))
        return rows[0] | {"case": case.name}

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    about = document()["machine"] | {"device": "cuda", "name": "GPU"}
    monkeypatch.setattr(gpu.results, "machine", lambda device: about)
    monkeypatch.setattr(gpu, "check", lambda *_: [{"case": "a", "error": 0.0, "tolerance": 1.0}])
    monkeypatch.setattr(gpu, "memcheck", lambda: "not run")
    monkeypatch.setattr(gpu.operators, "copy_bandwidth", lambda: 1e12)
    monkeypatch.setattr(gpu.operators, "measure", measure)
    return timed


def test_the_command_from_checks_to_plots(pretend, tmp_path, capsys):
    gpu.main(["--output", str(tmp_path)])
    assert [timed[0] for timed in pretend] == [case.name for case in CASES if "cuda" in case.targets]
    assert {timed[1:] for timed in pretend} == {("cuda", "triton", 1e12)}
    found = gpu.results.load(tmp_path / "gpu.json")
    assert found["sections"].keys() == {"checks", "operators"}
    assert found["sections"]["checks"]["environment"]["memcheck"] == "not run"
    assert [row["case"] for row in found["sections"]["operators"]["rows"]] == [timed[0] for timed in pretend]
    printed = capsys.readouterr().out
    assert "| SimCLR, N = 4096 | " in printed and f"written: {tmp_path / 'gpu.json'}" in printed
    if importlib.util.find_spec("matplotlib"):
        assert (tmp_path / "gpu-speed-up.png").stat().st_size > 1000


def test_a_wrong_case_leaves_the_others_and_ends_the_command(pretend, monkeypatch, tmp_path):
    measure = gpu.operators.measure

    def wrong(case, *rest):
        if case.name == "NT-Xent, N = 4096":
            raise gpu.operators.WrongResult("NT-Xent is wrong")
        return measure(case, *rest)

    monkeypatch.setattr(gpu.operators, "measure", wrong)
    with pytest.raises(SystemExit, match="NT-Xent is wrong"):
        gpu.main(["--output", str(tmp_path)])
    names = [row["case"] for row in gpu.results.load(tmp_path / "gpu.json")["sections"]["operators"]["rows"]]
    assert len(names) == len([case for case in CASES if "cuda" in case.targets]) - 1
    assert "NT-Xent, N = 4096" not in names

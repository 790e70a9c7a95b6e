import importlib.util
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import SIMCLR, document

from benchmarks import check, gpu
from benchmarks.cases import CASES

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")


def test_checks_pass_in_the_interpreter_and_can_fail(monkeypatch):
    case = replace(SIMCLR, heads=1, rows=10, settings=SIMCLR.settings | {"top_k": 3})
    problems = []
    [row] = gpu.check("cpu", [case], (torch.float32,), problems)
    assert row["error"] < 1e-5 and row["same_twice"] and problems == []
    monkeypatch.setitem(check.FLOOR, torch.float32, -1.0)
    [row] = gpu.check("cpu", [case], (torch.float32,), problems)
    assert len(problems) == 1 and problems[0].startswith(f"{case.name}, float32: relative error {row['error']:.2e}")


def test_a_check_that_raises_leaves_the_others(monkeypatch):
    case = replace(SIMCLR, heads=1, rows=10, settings=SIMCLR.settings | {"top_k": 3})
    broken = replace(case, name="broken", operator="none")
    problems = []
    rows = gpu.check("cpu", [broken, case], (torch.float32,), problems)
    assert [row["case"] for row in rows] == [f"{case.name}, float32"]
    assert len(problems) == 1 and problems[0].startswith("broken, float32: ")


@pytest.mark.parametrize("case", gpu.unusual_cases(), ids=lambda case: case.name)
def test_unusual_inputs(case):
    small = replace(case, heads=min(case.heads, 2), rows=6, width=24, candidates=150 if case.candidates else 0)
    x, y, *_, offset = small.operands("cpu", torch.float32)[:5]
    assert x.requires_grad and x.is_leaf
    if isinstance(case, gpu.UnusualCase):
        assert x.stride(-1) != 1 and offset.requires_grad
        if case.candidates:
            assert torch.equal(y[:, 3], y[:, 147])
    if isinstance(case, gpu.breakdown.EqualRows):
        assert torch.equal(x, y) and torch.equal(x[:, 0], x[:, 5])
    problems = []
    [row] = gpu.check("cpu", [small], (torch.float32,), problems)
    if case.name.startswith("τ from 1e-5") and "softmax" in case.name:
        # Over all, r is formed again in the backward pass, and numpy's products round by their shape: half a unit in
        # the last place of r = 8, in an exponent of 2,000.
        assert row["error"] < 5e-3
    else:
        assert problems == [] and row["error"] < 1e-4


def test_checks_side_by_side(monkeypatch):
    """Each process does its share; one that dies takes only its own share with it."""
    case = replace(SIMCLR, heads=1, rows=10, settings=SIMCLR.settings | {"top_k": 3})
    monkeypatch.setattr(gpu, "small_cases", lambda: [case, case])
    monkeypatch.setattr(gpu, "unusual_cases", list)
    problems = []
    assert gpu.all_checks(problems, jobs=2) == []
    assert len(problems) == 2 and all("cuda" in problem.lower() for problem in problems)


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
    checks = [{"case": "a", "error": 0.0, "tolerance": 1.0, "same_twice": True}]
    monkeypatch.setattr(gpu, "check", lambda *_: list(checks))
    monkeypatch.setattr(gpu, "memcheck", lambda: "not run")
    broken_down = {"kernels": [], "busy_ms": 1.0, "wall_ms": 2.0, "graph_ms": 1.5}
    monkeypatch.setattr(gpu.breakdown, "rows", lambda: iter([{"case": "a", "run": "ours", **broken_down}]))
    monkeypatch.setattr(gpu.breakdown, "ceilings", lambda: {"copy_bytes": 1e12})
    swept = {"sweep": "similarities", "parameters": {}, "us": {"_maxima": 2.0}, "error": 0.0}
    monkeypatch.setattr(gpu.sweep, "rows", lambda jobs: iter([swept]))
    monkeypatch.setattr(gpu.breakdown, "training_steps", lambda: [{"loss": "none", "run": "none", "wall_ms": 3.0}])
    monkeypatch.setattr(gpu.operators, "copy_bandwidth", lambda: 1e12)
    monkeypatch.setattr(gpu.operators, "measure", measure)
    return timed


def test_the_command_from_checks_to_plots(pretend, tmp_path, capsys):
    gpu.main(["--output", str(tmp_path), "--jobs", "1"])
    assert [timed[0] for timed in pretend] == [case.name for case in CASES if "cuda" in case.targets]
    assert {timed[1:] for timed in pretend} == {("cuda", "triton", 1e12)}
    found = gpu.results.load(tmp_path / "gpu.json")
    assert found["sections"].keys() == {"checks", "breakdown", "resnet50", "sweep", "operators", "memcheck"}
    assert found["sections"]["breakdown"]["environment"]["copy_bytes"] == 1e12
    assert found["sections"]["resnet50"]["rows"][0]["wall_ms"] == 3.0
    assert found["sections"]["memcheck"]["rows"] == [{"summary": "not run"}]
    assert [row["case"] for row in found["sections"]["operators"]["rows"]] == [timed[0] for timed in pretend]
    printed = capsys.readouterr().out
    assert "| SimCLR, N = 4096 | " in printed and f"written: {tmp_path / 'gpu.json'}" in printed
    if importlib.util.find_spec("matplotlib"):
        assert (tmp_path / "gpu-speed-up.png").stat().st_size > 1000


def test_parts_are_run_alone(pretend, tmp_path, capsys):
    gpu.main(["memcheck", "--output", str(tmp_path)])
    assert gpu.results.load(tmp_path / "gpu.json")["sections"].keys() == {"memcheck"} and pretend == []
    gpu.main(["timings", "--output", str(tmp_path)])
    assert gpu.results.load(tmp_path / "gpu.json")["sections"].keys() == {"memcheck", "operators"}
    with pytest.raises(SystemExit):
        gpu.main(["timing"])
    assert "PART must be one of checks, breakdown, sweep, timings, memcheck, got timing" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [gpu.operators.WrongResult("is wrong"), torch.OutOfMemoryError("no memory"), AssertionError()]
)
def test_what_fails_leaves_the_rest_and_the_exit_code(pretend, monkeypatch, tmp_path, error):
    measure = gpu.operators.measure

    def fails(case, *rest):
        if case.name == "NT-Xent, N = 4096":
            raise error
        return measure(case, *rest)

    def no_memcheck():
        raise gpu.operators.WrongResult("3 errors")

    monkeypatch.setattr(gpu.operators, "measure", fails)
    monkeypatch.setattr(gpu, "memcheck", no_memcheck)
    with pytest.raises(SystemExit) as end:
        gpu.main(["--output", str(tmp_path), "--jobs", "1"])
    told = str(error) or "AssertionError"
    assert f"2 problems:\nNT-Xent, N = 4096: {told}\ncompute-sanitizer: 3 errors" in str(end.value)
    names = [row["case"] for row in gpu.results.load(tmp_path / "gpu.json")["sections"]["operators"]["rows"]]
    assert len(names) == len([case for case in CASES if "cuda" in case.targets]) - 1
    assert "NT-Xent, N = 4096" not in names


def sanitizer(folder, monkeypatch, script):
    """A compute-sanitizer that is a shell script."""
    tool = folder / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_memcheck_tells_what_the_tool_says(monkeypatch, tmp_path):
    sanitizer(tmp_path, monkeypatch, 'echo "========= ERROR SUMMARY: 0 errors, $PYTORCH_NO_CUDA_MEMORY_CACHING"')
    assert gpu.memcheck() == "ERROR SUMMARY: 0 errors, 1"
    sanitizer(tmp_path, monkeypatch, "echo Invalid read; exit 9")
    with pytest.raises(gpu.operators.WrongResult, match="exit code 9\nInvalid read"):
        gpu.memcheck()


def test_memcheck_ends_what_it_started(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "_MEMCHECK_SECONDS", 5)
    sanitizer(tmp_path, monkeypatch, f"sleep 1000 & echo $! > {tmp_path}/child; wait")
    assert gpu.memcheck() == "not finished within 5 s"
    child = Path(f"/proc/{int((tmp_path / 'child').read_text())}")
    stop = time.monotonic() + 60
    # Killed; whoever adopted it may not have looked yet.
    while child.exists() and "State:\tZ" not in (child / "status").read_text():
        assert time.monotonic() < stop
        time.sleep(0.1)

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from tiny import SIMCLR

from benchmarks import check, gpu

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

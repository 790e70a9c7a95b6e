import subprocess
import sys
from dataclasses import replace

import pytest

from benchmarks import memory
from benchmarks.memory import in_fresh_process
from tests.helpers.benchmarks.tiny import SIMCLR

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")

# Half of it is freed before the other half is taken: the peak is 200 MB, not 300.
PROGRAM = """
import torch
from benchmarks.memory import extra_bytes

def run():
    torch.ones(25_000_000)
    return [torch.ones(25_000_000), torch.ones(25_000_000)]

print(extra_bytes(run, "cpu"))
"""


def test_a_known_allocation():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert int(done.stdout) == pytest.approx(200e6, rel=0.02), done.stderr


def test_dense_holds_its_matrices():
    case = replace(SIMCLR, heads=1, rows=2048)
    dense = in_fresh_process(case, "dense")
    assert 2 * 2048**2 * 4 < dense < 20 * 2048**2 * 4


def test_failure_is_told(capsys):
    assert in_fresh_process(SIMCLR, "nobody") is None
    assert "N = 512' by nobody is not measured: ValueError: peer must be one of " in (said := capsys.readouterr().err)
    assert " for contrast, got 'nobody'" in said


def test_a_process_that_does_not_end_is_given_up(monkeypatch, capsys):
    monkeypatch.setattr(memory, "_PATIENCE", 0.1)
    assert in_fresh_process(SIMCLR, "dense") is None
    assert "by dense is not measured: took longer than 0.1 s" in capsys.readouterr().err

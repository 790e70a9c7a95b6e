import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from amcl_fast import reference
from benchmarks import gpu, peers
from benchmarks.cases import CASES

SMALL = [
    replace(case, rows=20 if case.operator == "contrast" else 12, candidates=min(case.candidates, 40), width=16)
    for case in CASES
]
SMALL = [
    replace(case, settings=case.settings | ({"top_k": 5} if case.settings.get("top_k") else {})) for case in SMALL
]


@pytest.mark.parametrize("case", SMALL, ids=[case.name for case in CASES])
def test_peers_compute_the_operators(case):
    operands = case.operands("cpu", torch.float32)
    expected = gpu.evaluate(getattr(reference, case.operator), operands, case.settings)
    for name in ("dense", "chunked"):
        if name in case.peers:
            found = gpu.evaluate(peers.peer(name, case), operands, case.settings)
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_products_run_at_every_size():
    for case in SMALL:
        operands = case.operands("cpu", torch.float32)
        peers.products(case, operands)()
        peers.products(case, operands, 8)()


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_checks_pass_in_the_interpreter_and_can_fail(monkeypatch):
    case = replace(SMALL[0], rows=10, settings=SMALL[0].settings | {"top_k": 3})
    [row] = gpu.check("cpu", [case], (torch.float32,))
    assert row["error"] < 1e-5
    monkeypatch.setitem(gpu.TOLERANCE, torch.float32, 0.0)
    with pytest.raises(SystemExit, match="1 of 1 checks failed; nothing was timed"):
        gpu.check("cpu", [case], (torch.float32,))


def test_small_cases_cover_every_form():
    cases = gpu.small_cases()
    assert {case.operator for case in cases} == {"contrast", "align", "decorrelate"}
    assert {case.adaptive for case in cases} == {True, False}
    assert len({case.name for case in cases}) == len(cases)


def test_table_shows_verdicts():
    result = {
        "case": "a",
        "milliseconds": {"kernels": 1.0},
        "ratios": {"dense": 12.0, "gib": 0.1},
        "targets": {"dense": 10},
        "met": {"dense": True},
    }
    assert "| a | 1.000 | 12.0 | – | – | – | – | dense 12.00 (met: 10) |" in gpu.table([result])


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_says_what_is_missing():
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "needs an NVIDIA GPU" in done.stderr

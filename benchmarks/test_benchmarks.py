"""The registry under pytest-benchmark: `pytest benchmarks/`. The project's own tests leave this file out.

Cases whose products take a tenth of a second at most; `amcl-fast bench` measures all, in turn with their peers.
"""

from typing import Any

import pytest

from .cases import CASES, Case
from .check import Oracle
from .command import device
from .peers import NotInstalled, beside, implementation
from .step import step_of

pytest.importorskip("pytest_benchmark", reason="needs pytest-benchmark: pip install 'amcl-fast[bench]'")

_MOST_OPERATIONS = {"cpu": 3e10, "cuda": 1e13}
_CASES = [case for case in CASES if case.operations <= _MOST_OPERATIONS[device()] and case.fits(device())]
_RUNS = [
    (case, name)
    for case in _CASES
    for name in dict.fromkeys(("auto", "reference", *(peer.name for peer in beside(case, device()))))
]


@pytest.mark.parametrize(("case", "name"), _RUNS, ids=[f"{case.name}: {name}" for case, name in _RUNS])
def test_forward_and_backward(benchmark: Any, case: Case, name: str) -> None:
    """Checked against float64, then timed."""
    dtype = case.dtype_on(device())
    try:
        run = implementation(name, case)
    except NotInstalled as missing:
        pytest.skip(str(missing))
    oracle = Oracle(case, device(), dtype)
    assert oracle.error(run) <= oracle.allows(name)
    step = step_of(run, [case.operands(device(), dtype, seed) for seed in range(3)])
    benchmark.group = case.name
    benchmark.pedantic(step, rounds=5, warmup_rounds=1)

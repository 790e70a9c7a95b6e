import pytest
import torch

from benchmarks.measure import operators
from benchmarks.peers import NotInstalled, implementation
from benchmarks.show import tables
from tests.helpers.benchmarks.tiny import SIMCLR, run


@pytest.fixture(autouse=True)
def no_processes(monkeypatch):
    monkeypatch.setattr(operators.memory, "in_fresh_process", lambda case, name: 1000)


@pytest.fixture
def with_implementations(monkeypatch):
    """Replace some implementations, by name."""

    def replace(**others):
        def find(name, case):
            if isinstance(others.get(name), Exception):
                raise others[name]
            return others.get(name) or implementation(name, case)

        monkeypatch.setattr(operators, "implementation", find)

    return replace


def measure(case=SIMCLR):
    return operators.measure(case, "cpu", "auto", 0.0)


def times(factor):
    return lambda *operands: factor * implementation("auto", SIMCLR)(*operands)


def test_row_of_a_right_case(with_implementations):
    with_implementations(compiled=times(1))
    row = measure()
    assert set(row["runs"]) == {"ours", "reference", "dense", "compiled", "chunked", "products"}
    for name, found in row["runs"].items():
        assert found["rounds"] >= 3 and found["q1_ms"] <= found["median_ms"] <= found["q3_ms"]
        if name != "products":
            assert found["first_call_ms"] > 0 and found["extra_bytes"] == 1000
    assert row["runs"]["ours"]["error"] <= row["tolerance"]
    assert row["ratios"]["dense"] == row["runs"]["dense"]["median_ms"] / row["runs"]["ours"]["median_ms"]
    assert row["ratios"]["memory"] == 1


def test_a_wrong_kernel_is_refused_and_not_timed(monkeypatch, with_implementations):
    monkeypatch.setattr(operators, "interleaved", lambda *_: pytest.fail("it was timed"))
    with_implementations(auto=times(1.001))
    with pytest.raises(operators.WrongResult, match=r"SimCLR, N = 512: relative error 1.0e-03, .* not timed"):
        measure()


def test_wrong_and_missing_peers_are_shown_and_not_timed(with_implementations):
    with_implementations(dense=times(1.1), compiled=times(1), chunked=NotInstalled("not installed: pip install x"))
    runs = measure()["runs"]
    assert runs["dense"] == {"wrong": pytest.approx(0.1, rel=0.01)}
    assert runs["chunked"] == {"missing": "not installed: pip install x"}
    assert "median_ms" in runs["compiled"]


def test_a_peer_that_raises_leaves_the_others(with_implementations):
    def no_memory(*_):
        raise torch.OutOfMemoryError("no memory")

    with_implementations(dense=no_memory, compiled=times(1), chunked=times(1))
    row = measure()
    assert row["runs"]["dense"] == {"failed": "OutOfMemoryError: no memory"}
    assert row["ratios"].keys() >= {"compiled", "chunked"} and "dense" not in row["ratios"]
    assert "failed dense" in tables.operator_line(row)


def test_inputs_rotate():
    seen = []
    sets = [[torch.ones(3, requires_grad=True)] for _ in range(2)]
    step = operators.step_of(lambda x: seen.append(x) or x.sum(), sets)
    for _ in range(4):
        step()
    assert seen[0] is seen[2] and seen[1] is seen[3] and seen[0] is not seen[1]


def test_verdicts_follow_from_the_figures():
    row = {
        "runs": {"ours": run(10.0, 2**30), "dense": run(50.0, 2**32), "products": run(20.0)},
        "least_bytes": 10**7,
        "targets": {"dense": 6, "products": 0.5, "memory": 4, "gib": 0.5, "bandwidth": 0.5, "compiled": 1},
    }
    row["ratios"] = operators.ratios(row, bandwidth=2e9)
    assert row["ratios"] == {"dense": 5, "products": 0.5, "memory": 4, "gib": 1, "bandwidth": 0.5}
    assert operators.verdicts(row) == {
        "dense": False, "products": True, "memory": True, "gib": False, "bandwidth": True, "compiled": False
    }  # fmt: skip

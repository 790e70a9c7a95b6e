import pytest

from benchmarks import timing
from benchmarks.timing import interleaved, once, summary


class Clock:
    """Time goes on only by `pass_`; stands in for the module `time`."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now

    monotonic = perf_counter

    def pass_(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_summary_is_the_quartiles():
    assert summary([4.0, 1.0, 3.0, 2.0, 5.0]) == {"median_ms": 3.0, "q1_ms": 2.0, "q3_ms": 4.0, "rounds": 5}
    assert summary([7.0]) == {"median_ms": 7.0, "q1_ms": 7.0, "q3_ms": 7.0, "rounds": 1}


def test_once_is_milliseconds(clock):
    assert once(lambda: clock.pass_(0.02), "cpu") == pytest.approx(20)


def test_runs_take_turns_after_warming_up():
    calls = []
    found = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 0.0, "cpu", least=4)
    assert calls == ["a"] * 3 + ["b"] * 3 + ["a", "b"] * 4
    assert [of_run["rounds"] for of_run in found.values()] == [4, 4]


def test_rounds_go_on_for_the_given_time(clock):
    step = 2**-6  # exact in binary, so that the sum of many is
    found = interleaved({"a": lambda: clock.pass_(step), "b": lambda: clock.pass_(3 * step)}, 40 * step, "cpu")
    assert [of_run["rounds"] for of_run in found.values()] == [10, 10]
    assert clock.now == 100 + (3 * 4 + 40) * step
    assert (found["a"]["median_ms"], found["b"]["q3_ms"]) == (1e3 * step, 3e3 * step)

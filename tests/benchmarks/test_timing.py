import time

import pytest

from benchmarks.timing import interleaved, once, summary


def test_summary_is_the_quartiles():
    assert summary([4.0, 1.0, 3.0, 2.0, 5.0]) == {"median_ms": 3.0, "q1_ms": 2.0, "q3_ms": 4.0, "rounds": 5}
    assert summary([7.0]) == {"median_ms": 7.0, "q1_ms": 7.0, "q3_ms": 7.0, "rounds": 1}


def test_once_is_milliseconds():
    assert once(lambda: time.sleep(0.02), "cpu") == pytest.approx(25, abs=5.1)


def test_runs_take_turns_after_warming_up():
    calls = []
    found = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 0.0, "cpu", least=4)
    assert calls == ["a"] * 3 + ["b"] * 3 + ["a", "b"] * 4
    assert [timing["rounds"] for timing in found.values()] == [4, 4]


def test_rounds_go_on_for_the_given_time():
    started = time.monotonic()
    found = interleaved({"a": lambda: time.sleep(0.001)}, 0.2, "cpu")
    assert time.monotonic() - started == pytest.approx(0.3, abs=0.11)
    assert found["a"]["rounds"] > 20

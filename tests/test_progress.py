"""amcl_fast.progress: a line now and then, with an estimate."""

import io
import sys

import pytest

from amcl_fast import progress
from amcl_fast.progress import Progress, duration


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def run(clock, capsys, seconds, step=1.0, **settings):
    with Progress("checking images", **settings) as bar:
        for _ in range(int(seconds / step)):
            clock[0] += step
            bar.add(20_600)
    return capsys.readouterr().err.splitlines()


def test_what_is_over_soon_is_not_told(clock, capsys):
    assert run(clock, capsys, 1.9, 0.1, total=1_281_000) == []


def test_a_line_every_ten_seconds_estimates_the_end(clock, capsys):
    assert run(clock, capsys, 25, total=1_281_000) == [
        "checking images: 41,200 of 1,281,000, 60 s left",
        "checking images: 247,200 of 1,281,000, 50 s left",
        "checking images: 453,200 of 1,281,000, 40 s left",
    ]
    assert run(clock, capsys, 3) == ["checking images: 41,200"]
    assert run(clock, capsys, 30, total=1_281_000, shown=False) == []
    assert run(clock, capsys, 30, total=1_281_000, lines=False) == []


def test_a_terminal_has_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(progress, "_BAR_SECONDS", 0)
    with progress.doing("loading PyTorch"):
        assert screen.getvalue() == "loading PyTorch …\r"
    assert screen.getvalue().endswith("\r" + " " * 17 + "\r")
    with Progress("checking images", 50) as bar:
        assert "checking images:   0%|" in screen.getvalue() and "0/50" in screen.getvalue()
        bar.add(50)
    assert screen.getvalue().endswith("\r")  # it is gone again


def test_durations_are_read_at_a_glance():
    assert [duration(s) for s in (0.4, 119, 240, 12_000)] == ["0 s", "119 s", "4 min", "3 h 20 min"]

import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import parts, workers
from benchmarks.gpu.workers import Work, Workers
from tests.helpers.benchmarks.pretended import Clock

FOREVER = float("inf")
# Of the processes of this file, by `fork`.
CLOCK = Clock()


@pytest.fixture(autouse=True)
def forked(monkeypatch):
    monkeypatch.setattr(workers, "METHOD", "fork")


def perform(name, *rest):
    until = rest[-1]
    if name == "dies":
        yield {"first": 1}
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "raises":
        raise ValueError("one\ntwo")
    if name == "naps":
        time.sleep(0.3)
    if name == "sleeps":
        time.sleep(60)
    if name == "stays":
        # Whatever is asked of it, and with a child.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = os.fork()
        if not child:
            time.sleep(60)
        Path(rest[0]).write_text(str(child))
        CLOCK.take(30)
        time.sleep(60)
    yield {"process": os.getpid(), "until": until}


def run(tasks, jobs=1, until=FOREVER, latest=FOREVER, longest=60.0, unusable=lambda: False):
    with Workers(Work(perform, unusable)) as pool:
        return list(pool.run(tasks, jobs, until, latest, longest))


def kinds(events):
    return [(event.task[0], event.kind) for event in events]


def test_one_process_does_one_task_after_the_other():
    events = run([("a",), ("raises",), ("b",)])
    assert kinds(events) == [("a", "row"), ("a", "done"), ("raises", "failed"), ("b", "row"), ("b", "done")]
    assert events[2].content == "ValueError: one" and not any(event.lost for event in events)
    assert events[0].content["process"] == events[3].content["process"] != os.getpid()


def test_a_death_costs_its_task_and_no_other():
    events = run([("a",), ("dies",), ("b",)])
    assert kinds(events)[2:4] == [("dies", "row"), ("dies", "failed")] and kinds(events)[-1] == ("b", "done")
    assert events[3].content == "its process ended: SIGKILL" and events[3].lost
    assert events[0].content["process"] != events[-2].content["process"]


def test_a_process_that_can_do_no_more_is_replaced():
    events = run([("a",), ("raises",), ("b",)], unusable=lambda: True)
    assert kinds(events)[2:] == [("raises", "failed"), ("b", "row"), ("b", "done")] and events[2].lost
    assert events[0].content["process"] != events[3].content["process"]


def test_side_by_side():
    events = run([("naps", number) for number in range(4)], jobs=4)
    assert len({event.content["process"] for event in events if event.kind == "row"}) == 4


def test_what_takes_too_long_is_ended_and_what_is_late_is_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(workers, "_PATIENCE", 0.2)
    monkeypatch.setattr(workers, "time", CLOCK)
    started = CLOCK.monotonic()
    with Workers(Work(perform, lambda: False)) as pool:
        tasks = [("stays", tmp_path / "child"), ("a",), ("b",)]
        events = list(pool.run(tasks, 1, started + 0.2, started + 0.4, 60.0))
    assert kinds(events) == [("stays", "failed"), ("a", "left out"), ("b", "left out")]
    assert re.fullmatch(r"ended after \d+\.\d s, its time was up", events[0].content)
    child = Path(f"/proc/{(tmp_path / 'child').read_text()}")
    stop = time.monotonic() + 60
    while child.exists() and "State:\tZ" not in (child / "status").read_text():
        assert time.monotonic() < stop
        time.sleep(0.05)


def test_each_task_knows_its_share_of_the_time(monkeypatch):
    monkeypatch.setattr(workers, "time", CLOCK)
    started = CLOCK.monotonic()
    events = run([("a",), ("b",)], until=started + 100, longest=60)
    assert [event.content["until"] - started for event in events if event.kind == "row"] == [50, 100]
    (row, _) = run([("a",)])
    assert row.content["until"] == FOREVER


def test_what_is_left_ends_with_the_pool():
    pool = Workers(Work(perform, lambda: False))
    with pool:
        events = pool.run([("a",), ("sleeps",)], 2, FOREVER, FOREVER, 60)
        first = next(event for event in events if event.kind == "row")
    assert not Path(f"/proc/{first.content['process']}").exists()
    assert pool._idle == pool._busy == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_real_work_in_a_process_that_is_spawned(monkeypatch, tmp_path):
    """As on a GPU; here it finds that there is none, and can do no more."""
    monkeypatch.setattr(workers, "METHOD", "spawn")
    place = parts.Place(tmp_path / "a.json", tmp_path, 0.0, ("ceilings",))
    with Workers(parts.WORK) as pool:
        (event,) = pool.run([("ceilings", "copy", place)], 1, FOREVER, FOREVER, 60)
        assert pool._idle == []
    assert event.kind == "failed" and re.search("NVIDIA|CUDA", event.content)

"""The estimate of a run's end, by a clock that only the tests move."""

import re
from datetime import datetime

import lightning as L
import pytest

from amcl_fast.callbacks import Checkpoint, End, EpochSummary, OnlineKNN, ProgressBar
from amcl_fast.callbacks.knn import _Accuracies
from amcl_fast.callbacks.progress import clock as shown
from tests.helpers.fake_data import FakeDataModule
from tests.helpers.running import Stop, fit


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    perf_counter = monotonic


class Slow(L.Callback):
    """Steps of 2 s, the first one of 60, and 5 s of closing work after every epoch."""

    def __init__(self, clock):
        self.clock, self.first = clock, True

    def on_train_batch_end(self, *_):
        self.clock.now += 60 if self.first else 2
        self.first = False

    def on_train_epoch_end(self, *_):
        self.clock.now += 5


class SlowKNN(OnlineKNN):
    """Measures for 30 s."""

    def __init__(self, clock, every):
        super().__init__(every_n_epochs=every, before_training=False)
        self.clock = clock

    def _accuracies(self, *_):
        self.clock.now += 30
        return _Accuracies([50.0], None)


class Seen(L.Callback):
    """What is estimated after every step."""

    def __init__(self, end):
        self.end, self.left = end, {}

    def on_train_batch_end(self, trainer, *_):
        self.left[trainer.global_step] = self.end.seconds_left(trainer)


@pytest.fixture
def slow(monkeypatch):
    """Callbacks of a run of four steps an epoch; kNN after so many epochs."""
    clock = Clock()
    for module in ("progress", "knn"):
        monkeypatch.setattr(f"amcl_fast.callbacks.{module}.time", clock)
    return lambda every, end: [Slow(clock), SlowKNN(clock, every), end, Seen(end)]


@pytest.mark.parametrize(
    ("settings", "every", "expected"),
    [
        # What lies between epochs, and kNN, count once they were seen: 5 s from step 5 on, 30 s from step 9 on. After
        # the last step of an epoch those of that epoch are still to come.
        ({"max_epochs": 3}, 2, {2: 20, 4: 16, 5: 14 + 2 * 5, 8: 8 + 2 * 5, 9: 6 + 5 + 30}),
        ({"max_epochs": 3}, 1, {5: 14 + 2 * 5 + 2 * 30, 8: 8 + 2 * 5 + 2 * 30, 9: 6 + 5 + 30, 12: 5 + 30}),
        ({"max_epochs": 3}, 0, {2: 20, 4: 16, 5: 14 + 2 * 5, 9: 6 + 5}),
        # The last epoch ends after one of its four steps, and kNN is measured there.
        ({"max_epochs": -1, "max_steps": 9}, 2, {2: 14, 5: 8 + 2 * 5, 8: 2 + 2 * 5, 9: 5 + 30}),
        ({"max_epochs": -1, "max_steps": 9}, 1, {2: 14, 5: 8 + 2 * 5 + 2 * 30, 9: 5 + 30}),
    ],
)
def test_it_is_what_was_seen_times_what_is_left(tmp_path, slow, settings, every, expected):
    callbacks = slow(every, End())
    fit(tmp_path, extra=callbacks, **settings)
    left = callbacks[-1].left
    assert left[1] is None
    assert {step: left[step] for step in expected} == pytest.approx(expected)


def test_a_part_of_a_step_is_no_step_yet(tmp_path, slow):
    callbacks = slow(0, End())
    told = []

    class Batch(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            told.append(callbacks[2].seconds_left(trainer))

    data = FakeDataModule(steps=9)
    fit(tmp_path, data=data, extra=[*callbacks, Batch()], max_epochs=1, accumulate_grad_batches=3)
    # Three steps of three batches of 2 s; the first step is left out, and nothing is known until the second.
    assert told == [None] * 5 + [6] * 3 + [0]


def test_a_run_that_goes_on_is_judged_anew(tmp_path, slow):
    with pytest.raises(Stop):
        fit(tmp_path, extra=[*slow(0, End()), Stop.at(6)], max_epochs=5)
    callbacks = slow(0, End())
    path = str(tmp_path / "checkpoints" / "last.ckpt")
    fit(tmp_path, extra=callbacks, ckpt_path=path, max_epochs=5)
    # Of the step after the fourth nothing is known, of the next one that it takes 2 s.
    assert list(callbacks[-1].left.items())[:2] == [(5, None), (6, pytest.approx(14 * 2))]


def test_it_comes_no_later_than_max_time(tmp_path, slow):
    callbacks = slow(0, End())
    with pytest.raises(Stop):
        fit(tmp_path, extra=[*callbacks, Stop.at(3)], max_epochs=100_000, max_time={"hours": 10})
    assert 35_000 < callbacks[-1].left[2] <= 36_000


def test_lines_and_bar_tell_it(tmp_path, slow, capsys):
    fit(tmp_path, data=FakeDataModule(), extra=slow(2, EpochSummary()), max_epochs=3)
    first, second, last = capsys.readouterr().out.splitlines()
    assert re.search(r"  16 s left, until (\w{3} )?\d\d:\d\d  71\.0 s$", first)
    assert "  43 s left, until " in second and "left" not in last  # 8 s of steps, 5 s, 30 s of the closing kNN
    end = End()
    callbacks = slow(0, end)
    bar = ProgressBar(end)

    class Metrics(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            told.append(bar.get_metrics(trainer, pl_module))

    told = []
    fit(tmp_path / "bar", extra=[*callbacks, Metrics()], max_epochs=1)
    assert "left" not in told[0] and told[1]["left"] == "4 s" and ":" in told[1]["until"]


def test_the_bar_counts_epochs_as_lines_do_and_begins_where_the_run_goes_on(tmp_path, slow, capsys):
    with pytest.raises(Stop):
        fit(tmp_path, extra=[Stop.at(6)], checkpoint=Checkpoint(every_n_steps=1), max_epochs=3)
    bar, seen = ProgressBar(end := End()), []

    class Bar(L.Callback):
        def on_train_batch_start(self, *_):
            shown = bar.train_progress_bar
            seen.append((shown.desc, shown.n, shown.total))

    settings = {"ckpt_path": tmp_path / "checkpoints" / "last.ckpt", "max_epochs": 3, "enable_progress_bar": True}
    fit(tmp_path, extra=[*slow(0, end)[:1], end, bar, Bar()], **settings)
    assert seen == [(f"epoch {step // 4 + 1}/3: ", step % 4, 4) for step in range(5, 12)]
    assert "Epoch" not in capsys.readouterr().out


def test_the_clock_of_another_day_names_it():
    now = datetime(2026, 11, 26, 23, 0)
    assert shown(59 * 60, now) == "23:59"
    assert shown(3 * 3600, now) == "Fri 02:00"
    assert shown(30 * 86400, now) == "2026-12-26 23:00"

import lightning as L
import pytest

from amcl_fast.callbacks import End, EpochSummary, ProgressBar, SkippedFiles, Throughput
from tests.helpers.fake_data import FakeDataModule, FakeLoader
from tests.helpers.running import fit


class Clock:
    """A clock that only the test moves: a loaded machine does not change what it shows."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class SlowLoader(FakeLoader):
    """Waits 10 ms for every batch and says so."""

    clock: Clock

    def _draw(self, position):
        self.clock.now += 0.01
        self.wait_seconds += 0.01
        return super()._draw(position)


class SlowStep(L.Callback):
    """Makes every step take 30 ms."""

    def __init__(self, clock):
        self.clock = clock

    def on_train_batch_end(self, *_):
        self.clock.now += 0.03


class Look(L.Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *_):
        self.seen.append(dict(trainer.callback_metrics))


def test_rates_are_those_of_the_clock(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("amcl_fast.callbacks.throughput.time", clock)
    data = FakeDataModule(steps=8, batch=8)
    data.loader = SlowLoader(8, 8)
    data.loader.clock = clock
    look = Look()
    fit(tmp_path, data=data, extra=[SlowStep(clock), Throughput(), look], max_epochs=1)
    metrics = look.seen[-1]
    assert float(metrics["images_per_second"]) == pytest.approx(8 / 0.04)
    assert float(metrics["wait_share"]) == pytest.approx(0.25)


def test_summary_is_one_line_per_epoch(tmp_path, capsys):
    fit(tmp_path, extra=[Throughput(), EpochSummary()], max_epochs=2)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("epoch 1/2  loss ") and second.startswith("epoch 2/2  loss ")
    assert "images/s" in first and "waiting" in first and first.endswith(" s")


class Slower(SlowLoader):
    """Waits 10 ms for a batch of the first epoch, 20 ms for one of the second, …"""

    def _draw(self, position):
        self.clock.now += 0.01 * self.epoch
        self.wait_seconds += 0.01 * self.epoch
        return super()._draw(position)


def test_a_line_and_the_bar_are_of_their_own_epoch(tmp_path, monkeypatch, capsys):
    """Metrics are due after steps 10 and 20, of 5 an epoch."""
    clock = Clock()
    monkeypatch.setattr("amcl_fast.callbacks.throughput.time", clock)
    data = FakeDataModule(steps=5)
    data.loader = Slower(5, 8)
    data.loader.clock = clock
    bar, shown = ProgressBar(summary := EpochSummary()), []

    class Bar(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            told = bar.get_metrics(trainer, pl_module)
            shown.append(("loss" in told, told["images/s"]))

    extra = [SlowStep(clock), Throughput(), summary, Bar()]
    fit(tmp_path, data=data, extra=extra, max_epochs=4, log_every_n_steps=10)
    lines = capsys.readouterr().out.splitlines()
    assert all("loss" in line for line in lines)  # of the last step, where none was logged
    # The first batch's wait is before the first step.
    seconds = [5 * 0.03 + 4 * 0.01 * (epoch + 1) for epoch in range(4)]
    told = [line.split("  ") for line in lines]
    assert [next(part for part in parts if "images/s" in part) for parts in told] == [
        f"{40 / each:,.0f} images/s" for each in seconds
    ]
    waited = [4 * 0.01 * (epoch + 1) / each for epoch, each in enumerate(seconds)]
    assert [next(part for part in parts if "waiting" in part) for parts in told] == [
        f"waiting {share:.0%}" for share in waited
    ]
    assert [rate for _, rate in shown][4::5] == [f"{40 / each:,.0f}" for each in seconds]
    assert not any(loss for loss, _ in shown)  # of the last step of an epoch, which the bar shows no longer


def test_the_bar_shows_the_loss_of_an_earlier_step_of_its_epoch_alone(tmp_path):
    bar, shown = ProgressBar(end := End()), []

    class Bar(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            shown.append("loss" in bar.get_metrics(trainer, pl_module))

    fit(tmp_path, data=FakeDataModule(steps=4), extra=[end, Bar()], max_epochs=2, log_every_n_steps=3)
    assert shown == [False, False, False, True, False, False, True, True]  # logged are steps 3 and 6


def test_skipped_files_are_listed(tmp_path, capsys):
    data = FakeDataModule()
    data.skipped = [("a/x.jpg", "truncated"), ("b/y.jpg", "not an image")]
    fit(tmp_path, data=data, extra=[SkippedFiles()], max_epochs=1)
    written = (tmp_path / "skipped_files.txt").read_text().splitlines()
    assert written == ["a/x.jpg\ttruncated", "b/y.jpg\tnot an image"]
    assert "2 unreadable files" in capsys.readouterr().out


def test_nothing_is_listed_when_all_can_be_read(tmp_path):
    fit(tmp_path, extra=[SkippedFiles()], max_epochs=1)
    assert not (tmp_path / "skipped_files.txt").exists()

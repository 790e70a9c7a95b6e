import lightning as L
import pytest
from fake_data import FakeDataModule, FakeLoader
from running import fit

from amcl_fast.callbacks import EpochSummary, SkippedFiles, Throughput


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

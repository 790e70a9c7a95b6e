import time

import lightning as L
from fake_data import FakeDataModule, FakeLoader
from running import fit

from amcl_fast.callbacks import EpochSummary, SkippedFiles, Throughput


class SlowLoader(FakeLoader):
    """Waits 20 ms for every batch and says so."""

    def _draw(self, position):
        time.sleep(0.02)
        self.wait_seconds += 0.02
        return super()._draw(position)


class SlowStep(L.Callback):
    def on_train_batch_end(self, *_):
        time.sleep(0.02)


class Look(L.Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *_):
        self.seen.append(dict(trainer.callback_metrics))


def test_rates_are_those_of_the_clock(tmp_path):
    data = FakeDataModule(steps=8, batch=8)
    data.loader = SlowLoader(8, 8)
    look = Look()
    fit(tmp_path, data=data, extra=[SlowStep(), Throughput(), look], max_epochs=1)
    metrics = look.seen[-1]
    # A step takes 40 ms and what the tiny encoder takes.
    assert 20 < metrics["images_per_second"] < 8 / 0.04
    assert 0.05 < metrics["wait_share"] <= 0.5


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

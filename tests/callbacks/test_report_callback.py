"""amcl_fast.callbacks.report: a report at the end, the first look kept, training untouched."""

import json

import pytest
import torch
from fake_data import FakeDataModule, FakeLoader
from running import Stop, fit, method

from amcl_fast.callbacks import MetricsFile
from amcl_fast.callbacks.report import Report
from amcl_fast.report import Snapshot
from amcl_fast.report.run import snapshot_path


class Data(FakeDataModule):
    mean, std = (0.5,) * 3, (0.25,) * 3

    def train_dataloader(self):
        return FakeLoader(self.loader.steps, self.loader.batch)


def train(folder, *, report=None, **settings):
    """Two epochs of four steps with a report."""
    resumed = settings.get("ckpt_path") is not None
    module = method()
    logger = MetricsFile(folder, resume_step=4 if resumed else None)
    extra = [*settings.pop("extra", ()), report or Report(pairs=8)]
    fit(folder, module, Data(), logger=logger, extra=extra, **settings)
    return module


def test_a_run_ends_with_a_report(tmp_path):
    train(tmp_path)
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert summary["finished"] is True and summary["seconds"] > 0
    assert (summary["training_images"], summary["classes"]) == (32, 2)
    assert summary["versions"]["torch"] == torch.__version__
    assert (tmp_path / "report" / "index.html").read_text().count("<img") == 4  # no kNN here
    before, after = (Snapshot.load(snapshot_path(tmp_path, moment)) for moment in ("before", "after"))
    assert (before.step, after.step) == (0, 8)
    assert (before.positive_similarity != after.positive_similarity).any()
    assert (before.views == after.views).all()


def test_a_stopped_run_keeps_its_first_look_when_it_goes_on(tmp_path):
    with pytest.raises(Stop):
        train(tmp_path, extra=[Stop.at(6)])
    assert not (tmp_path / "report").exists()
    first = snapshot_path(tmp_path, "before").read_bytes()
    assert json.loads((tmp_path / "run.json").read_text())["finished"] is False
    train(tmp_path, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    assert snapshot_path(tmp_path, "before").read_bytes() == first
    assert Snapshot.load(snapshot_path(tmp_path, "after")).step == 8


def test_a_report_leaves_the_training_as_it_is(tmp_path):
    with_report = train(tmp_path / "with")
    plain = method()
    fit(tmp_path / "without", plain, Data())
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, with_report.state_dict()[name]), name


def test_no_pairs_are_refused():
    with pytest.raises(ValueError, match="pairs"):
        Report(pairs=0)

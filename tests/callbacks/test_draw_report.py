"""amcl_fast.callbacks.draw_report: a report at the end, the first look kept, training untouched."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from amcl_fast import SimCLRLoss
from amcl_fast.callbacks import Checkpoint, EventsFile, MetricsFile, OnlineKNN
from amcl_fast.callbacks import draw_report as callback
from amcl_fast.callbacks.draw_report import Report
from amcl_fast.report import Snapshot, read_run
from amcl_fast.runs.directory import RunDirectory
from tests.helpers.command_line import saved_step
from tests.helpers.fake_data import FakeDataModule, FakeLoader
from tests.helpers.running import Stop, fit, method


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
    drawn = {path.stem for path in (tmp_path / "report").glob("*.png")} - {"neighbourhoods"}  # if t-SNE is installed
    training = {"loss", "learning_rate", "gradient_norm", "temperature", "heads"}
    assert drawn == training | {"embedding", "histograms", "anchors", "agreement", "pairs"}  # no kNN here
    before, after = (Snapshot.load(RunDirectory(tmp_path).snapshot(moment)) for moment in ("before", "after"))
    assert (before.step, after.step) == (0, 8)
    assert (before.positive_similarity != after.positive_similarity).any()
    assert (before.views == after.views).all()


def test_tensorboard_has_settings_and_pictures(tmp_path):
    module, checkpoint = method(), Checkpoint()
    checkpoint.settings = {"model": {"lr": 0.5, "views": [1, 2], "clip": None}, "compile": False}
    fit(tmp_path, module, Data(), checkpoint=checkpoint, logger=EventsFile(tmp_path), extra=[Report(pairs=8)])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    content = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    told = HParamsPluginData.FromString(content).session_start_info.hparams
    assert told["model.lr"].number_value == 0.5 and told["model.views"].string_value == "[1, 2]"
    assert "model.clip" not in told
    EventsFile(tmp_path).log_hyperparams({"encoder": torch.nn.Identity()})  # as a module's own may be
    drawn = {path.stem: path.read_bytes() for path in (tmp_path / "report").glob("*.png")}
    assert set(events.Tags()["images"]) == set(drawn) >= {"pairs", "histograms"}
    before, after = events.Images("pairs")
    assert (before.step, after.step) == (0, 8) and after.encoded_image_string == drawn["pairs"]
    first = np.asarray(Image.open(io.BytesIO(before.encoded_image_string)))
    assert (first[:8, 8:16] == Snapshot.load(RunDirectory(tmp_path).snapshot("before")).views[0, 1]).all()
    assert (before.width, before.height) == first.shape[1::-1]


def test_temperatures_of_every_head_are_logged_after_every_epoch(tmp_path):
    module = train(tmp_path)
    run = read_run(tmp_path)
    for kind in ("positive", "negative"):
        first, second = run.heads(kind)
        assert first[0].tolist() == second[0].tolist() == [3, 7]
        assert all(0.1 < tau < 1.0 for tau in [*first[1], *second[1]])
    # The last batch, as training left the weights.
    views, _ = FakeLoader(4, 8)._draw(7)
    module.train()
    pairs = module.pairs_of_views(views)
    assert [series[1][-1] for series in run.heads("positive")] == pytest.approx(pairs.positive_tau.mean(1).tolist())
    hardest = pairs.negative_similarity.topk(4, dim=-1).indices  # top_k of the loss
    expected = pairs.negative_tau.gather(-1, hardest).mean((1, 2))
    assert [series[1][-1] for series in run.heads("negative")] == pytest.approx(expected.tolist())


def test_a_constant_temperature_has_no_curves_of_heads(tmp_path):
    module = method(criterion=SimCLRLoss(0.3, backend="reference"))
    fit(tmp_path, module, Data(), logger=MetricsFile(tmp_path), extra=[Report(pairs=8)])
    assert read_run(tmp_path).heads("positive") == []


@pytest.mark.parametrize("where", ["write_report", "write_facts"])
def test_a_report_that_cannot_be_written_does_not_end_the_run(tmp_path, monkeypatch, where):
    real = getattr(callback, where)

    def full(folder, *rest):
        if where == "write_report" or rest[0]["finished"]:
            raise OSError(28, "No space left on device")
        return real(folder, *rest)

    monkeypatch.setattr(callback, where, full)
    with pytest.warns(UserWarning, match="no report: .*No space left.*amcl-fast report"):
        train(tmp_path)
    assert saved_step(tmp_path) == 8


def test_a_snapshot_that_cannot_be_written_is_tried_again(tmp_path, monkeypatch):
    left = [OSError(28, "No space left on device")] * 2
    real = Snapshot.save

    def save(shot, path):
        if left:
            raise left.pop()
        real(shot, path)

    monkeypatch.setattr(Snapshot, "save", save)
    with pytest.warns(UserWarning, match=r"before\.npz cannot be written \(.*No space left"):
        train(tmp_path)
    assert read_run(tmp_path).before.step == 0


def test_nearest_images_that_cannot_be_had_do_not_end_the_run(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no such disk")

    monkeypatch.setattr(callback, "pictured", fail)
    knn = OnlineKNN()
    knn.found = None, torch.zeros(2, 2)
    monkeypatch.setattr(callback, "_knn", lambda trainer: knn)
    with pytest.warns(UserWarning, match="no nearest images: no such disk"):
        train(tmp_path)
    assert saved_step(tmp_path) == 8


def test_whatever_a_report_fails_of_the_run_is_saved(tmp_path, monkeypatch):
    def fail(folder):
        raise RuntimeError("no font")

    monkeypatch.setattr(callback, "write_report", fail)
    with pytest.warns(UserWarning, match="no report: no font"):
        train(tmp_path)
    assert saved_step(tmp_path) == 8


def test_a_stopped_run_keeps_its_first_look_when_it_goes_on(tmp_path):
    with pytest.raises(Stop):
        train(tmp_path, extra=[Stop.at(6)])
    assert not (tmp_path / "report").exists()
    first = RunDirectory(tmp_path).snapshot("before").read_bytes()
    assert json.loads((tmp_path / "run.json").read_text())["finished"] is False
    stopped = read_run(tmp_path)
    steps, _ = stopped.series("loss")
    assert stopped.epochs(steps).tolist() == [(step + 1) / 4 for step in steps] != []
    train(tmp_path, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    assert RunDirectory(tmp_path).snapshot("before").read_bytes() == first
    assert Snapshot.load(RunDirectory(tmp_path).snapshot("after")).step == 8


def test_a_report_leaves_the_training_as_it_is(tmp_path):
    with_report = train(tmp_path / "with")
    plain = method()
    fit(tmp_path / "without", plain, Data())
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, with_report.state_dict()[name]), name


def test_no_pairs_are_refused():
    with pytest.raises(ValueError, match="pairs"):
        Report(pairs=0)

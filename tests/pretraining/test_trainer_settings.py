"""Settings of Lightning's trainer do what they say: no step, a few, the same batches, nothing saved."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from amcl_fast.cli import main
from amcl_fast.data.loader.order import Order
from tests.helpers.command_line import NT_XENT, image_folder, saved_step

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("undrawn")]

_SETTINGS = NT_XENT + "trainer: {max_epochs: 2, accelerator: cpu, log_every_n_steps: 1}"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"), 8, 2)


@pytest.fixture
def start(tmp_path, images, monkeypatch):
    """Arguments of a run that takes a second, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    Path("settings.yaml").write_text(_SETTINGS)
    return ["pretrain", "--config", "settings.yaml", "--data", str(images)]


def weights(run):
    return torch.load(Path(run, "checkpoints", "last.ckpt"), weights_only=True)["state_dict"]


@pytest.mark.parametrize("limit", ["max_epochs", "max_steps"])
def test_a_training_of_no_step_measures_saves_and_goes_on_as_if_it_had_not_been(limit, start, capsys):
    begun = [*start, "--run_dir", "begun", "--model.schedule.warmup_epochs", "1", "--model.optimizer.lr", "0.1"]
    assert main([*begun, f"--trainer.{limit}", "0"]) == 0
    out = capsys.readouterr().out
    assert "untrained encoder" in out and "after epoch" not in out and "begun/report/index.html" in out
    assert saved_step(Path("begun")) == 0
    more = "2" if limit == "max_epochs" else "null"
    back = ["--trainer.max_steps", "-1"] if limit == "max_steps" else ["--trainer.max_epochs", more]
    assert main(["pretrain", "--resume", "begun", *back]) == 0
    assert main([*begun, "--run_dir", "whole"]) == 0
    now, then = weights("begun"), weights("whole")
    assert saved_step(Path("begun")) == 4 and all(torch.equal(now[name], then[name]) for name in then)
    knn = [yaml.safe_load(Path(run, "report", "summary.json").read_text())["knn"] for run in ("begun", "whole")]
    assert knn[0] == knn[1]


def test_a_run_that_is_only_tried_out_leaves_nothing(start, tmp_path, monkeypatch, capsys):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    theirs = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=theirs", "--trainer.callbacks=ModelCheckpoint"]
    # A warm-up that is longer than what is tried.
    assert main([*start, "--trainer.fast_dev_run", "1", "--model.schedule.warmup_epochs", "1", *theirs]) == 0
    out, err = capsys.readouterr()
    assert "tried out: 1 step of the run trained, and its report was drawn; nothing was kept" in out and not err
    assert main([*start, "--trainer.fast_dev_run", "true", "--model.optimizer.lr", "1e30", "--run_dir", "x"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "kNN cannot be measured: bank must be finite" in line and "model.optimizer.lr" in line
    assert main([*start, "--run_dir", "run", "--trainer.max_epochs", "0"]) == 0
    capsys.readouterr()
    assert main(["pretrain", "--resume", "run", "--trainer.fast_dev_run", "true"]) == 2
    assert "trainer.fast_dev_run must be false with --resume" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"settings.yaml", "temporary", "run"}
    assert not [path for path in (tmp_path / "temporary").iterdir() if path.name.startswith("amcl-fast-")]


def test_a_run_without_checkpoints_has_everything_else(start, capsys):
    settings = ["--trainer.enable_checkpointing", "false", "--checkpoint.keep_every_n_epochs", "1"]
    assert main([*start, "--run_dir", "run", *settings, "--trainer.profiler", "simple"]) == 0
    out, err = capsys.readouterr()
    assert "no checkpoint is saved (trainer.enable_checkpointing)" in out and "last.ckpt" not in out and not err
    assert not Path("run/checkpoints").exists() and Path("run/report/index.html").is_file()
    assert "run/fit-profile.txt" in out and "run_training_batch" in Path("run/fit-profile.txt").read_text()
    assert main(["pretrain", "--resume", "run", "--trainer.enable_checkpointing", "true"]) == 0
    assert "begins anew" in capsys.readouterr().out and saved_step(Path("run")) == 4


def test_batches_to_overfit_are_the_same_in_every_epoch(start, monkeypatch):
    from amcl_fast.methods import SimCLR

    labels = []
    step = SimCLR.training_step

    def noted(self, batch, batch_idx):
        labels.append((batch[1].tolist(), batch[0][0].flatten()[:64].tolist()))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(SimCLR, "training_step", noted)
    for given, count in (("1", 1), ("0.5", 1), ("7", 2)):
        labels.clear()
        assert (
            main([*start, f"--run_dir=run-{given}", f"--trainer.overfit_batches={given}", "--trainer.max_epochs=3"])
            == 0
        )
        (first, second, third) = (labels[place : place + count] for place in range(0, len(labels), count))
        assert [label for label, _ in first] == [label for label, _ in second] == [label for label, _ in third]
        assert first != second  # augmented anew
    assert main(["pretrain", "--resume", "run-1", "--trainer.overfit_batches", "0"]) == 2


@pytest.mark.parametrize("pool", [None, 8])
def test_an_order_that_repeats_its_first_batches(pool):
    whole, repeated = (Order(50, 4, seed=3, share=1, shares=2, pool=pool, repeated=n) for n in (None, 3))
    assert (whole.batches, repeated.batches) == (6, 3)
    places = [repeated.places(batch) for batch in range(9)]
    assert len({*np.concatenate(places[:3]).tolist()}) == 12
    for batch in range(3, 9):
        assert np.array_equal(places[batch], places[batch % 3])
    if pool is None:
        assert all(np.array_equal(whole.places(batch), places[batch]) for batch in range(3))


def test_a_logger_of_the_users_joins_the_runs_own(start):
    one = ["--run_dir", "run", "--trainer.max_epochs", "1"]
    assert main([*start, *one, "--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "theirs"]) == 0
    assert main(["pretrain", "--resume", "run", "--trainer.max_epochs=2"]) == 0
    assert len(list(Path("theirs").rglob("metrics.csv"))) == 2 and Path("run/metrics.csv").is_file()
    told = yaml.safe_load(next(Path("theirs").rglob("version_1/hparams.yaml")).read_text())
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert all(told[part] == config[part] for part in ("trainer", "model", "knn")) and told["data"]["batch_size"] == 8
    # One more is no other training.
    more = ["--trainer.logger+=CSVLogger", "--trainer.logger.save_dir=more", "--trainer.max_epochs=3"]
    assert main(["pretrain", "--resume", "run", *more, "--trainer.enable_autolog_hparams=false"]) == 0
    assert len(list(Path("theirs").rglob("metrics.csv"))) == 3 and Path("more/lightning_logs/version_0").is_dir()
    assert not Path("more/lightning_logs/version_0/hparams.yaml").exists()

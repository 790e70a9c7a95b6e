"""`amcl-fast pretrain --resume`: which settings may change, and what those of earlier versions become."""

import json
import shutil
import sys

import pytest
import torch
import yaml

from amcl_fast.cli import main
from amcl_fast.pretraining.lightning_cli import PretrainCLI
from tests.helpers.command_line import AMCL, image_folder
from tests.helpers.resuming import change_everywhere, content, error, resume

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("undrawn")]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["--model.backbone.width", 16], "model.init_args.backbone.width from 8 to 16"),
        (["--model.optimizer.lr", 0.5], "model.init_args.optimizer.lr from 0.06 to 0.5"),
        (["--data.batch_size=4"], "data.batch_size from 8 to 4"),
        (["--seed_everything", 1], "seed_everything from 0 to 1"),
        (["--trainer.precision", "bf16-mixed"], "trainer.precision from unset to bf16-mixed"),
        (["--trainer.gradient_clip_val", 1, "--data.size", 8], "data.size from 16 to 8"),
        (["--model.optimizer.weight_decay=0.1"], "model.init_args.optimizer.weight_decay from 0.0005 to 0.1"),
        (["--model.schedule.interval=epoch"], "model.init_args.schedule.interval from step to epoch"),
        (["--model.criterion.temperature=0.5"], "model.init_args.criterion.init_args.temperature from 0.2 to 0.5"),
        (["--model.criterion.top_k=5"], "model.init_args.criterion.init_args.top_k from 100 to 5"),
        (["--trainer.accumulate_grad_batches=2"], "trainer.accumulate_grad_batches from 1 to 2"),
        (["--trainer.gradient_clip_val=1"], "trainer.gradient_clip_val from unset to 1"),
        (["--config", "over.yaml"], "model.init_args.optimizer.lr from 0.06 to 0.5"),
        (["--config=over.yaml"], "model.init_args.optimizer.lr from 0.06 to 0.5"),
    ],
)
def test_settings_that_must_stay_are_refused_by_name(run, settings, named, capsys):
    (run.parent / "over.yaml").write_text("model: {init_args: {optimizer: {lr: 0.5}}}")
    before = content(run)
    assert resume("--trainer.max_epochs", 2, *settings) == 2
    assert named in error(capsys)
    assert content(run) == before


@pytest.mark.parametrize("given", [False, True])
def test_what_is_measured_on_is_neither_given_nor_taken_away(run, finished, given, capsys):
    """It would change what is trained on; from one place to another it may go."""
    images = str(finished / "images" / "test")
    if given:
        change_everywhere(run, lambda settings: settings["data"].update(held_out=images))
    before = content(run)
    for change in ("--data.held_out=null", "--data.held_out=") if given else (f"--data.held_out={images}",):
        assert resume("--trainer.max_epochs", 2, change) == 2
        told = error(capsys)
        assert "data.held_out from " in told and "(without it a part of data.root is measured on, with it" in told
        assert content(run) == before
    if given:
        shutil.copytree(images, run.parent / "moved")
        assert resume("--trainer.max_epochs", 2, "--data.held_out", "moved") == 0
        assert yaml.safe_load((run / "config.yaml").read_text())["data"]["held_out"] == str(run.parent / "moved")


def test_a_run_from_before_the_type_of_views_could_be_set_keeps_it(run):
    change_everywhere(run, lambda settings: settings["data"].pop("dtype"))
    assert resume("--trainer.max_epochs", 2) == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["dtype"] == "float32"
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["settings"]
    assert saved["data"]["dtype"] == "float32"


def test_what_may_change_does(run, finished):
    shutil.copytree(finished / "images", moved := run.parent / "moved")
    changes = ["--trainer.log_every_n_steps=2", "--data.num_threads=2", "--data.prefetch=1", "--knn.k=3"]
    changes += ["--checkpoint.keep_every_n_epochs=1", "--report.pairs=8", "--trainer.devices=1", "--guard.window=5"]
    assert resume("--trainer.max_epochs", 2, "--data", moved, *changes) == 0
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["trainer"]["max_epochs"] == 2 and settings["data"]["root"] == str(moved)
    assert (run / "checkpoints" / "epoch-0002.ckpt").samefile(run / "checkpoints" / "last.ckpt")
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["settings"]
    assert {name: saved[name] for name in settings} == settings and saved["run"] == "run"


def test_what_may_change_changes_what_runs(run, monkeypatch):
    """After the checkpoint is loaded, too, whose callbacks have states of their own."""
    found = []
    monkeypatch.setattr("amcl_fast.pretraining.command.print_results", found.append)
    callback = "--trainer.callbacks={class_path: lightning.pytorch.callbacks.LearningRateMonitor}"
    changes = [
        "--trainer.max_epochs=9", "--trainer.max_steps=5", "--trainer.min_steps=1", "--trainer.min_epochs=1",
        "--trainer.max_time=00:01:00:00", "--trainer.log_every_n_steps=3", "--trainer.detect_anomaly=true",
        "--trainer.profiler=simple", "--trainer.enable_progress_bar=true", "--trainer.enable_model_summary=true",
        "--data.num_threads=2", "--data.prefetch=3", "--data.crop_pct=0.9", "--knn.k=3", "--knn.every_n_epochs=2",
        "--knn.temperature=0.3", "--knn.bank=9", "--knn.queries=8",
        "--guard.every_n_steps=4", "--guard.window=7", "--checkpoint.every_n_steps=2",
        "--checkpoint.every_n_epochs=3", "--checkpoint.every_n_minutes=1.5", "--checkpoint.keep_every_n_epochs=2",
        "--data.max_image_bytes=9000000", "--data.max_image_pixels=8000000", "--report.pairs=6",
    ]  # fmt: skip
    assert resume(*changes, callback) == 0
    (cli,) = found
    trainer, data = cli.trainer, cli.datamodule
    assert (trainer.max_epochs, trainer.max_steps, trainer.min_steps, trainer.min_epochs) == (9, 5, 1, 1)
    assert trainer.global_step == 5 and trainer.log_every_n_steps == 3
    assert trainer._detect_anomaly and type(trainer.profiler).__name__ == "SimpleProfiler"
    assert (data.num_threads, data.prefetch, data.crop_pct, *data.limits) == (2, 3, 0.9, 9_000_000, 8_000_000)
    callbacks = {type(callback).__name__: callback for callback in trainer.callbacks}
    assert {"LearningRateMonitor", "Timer", "ProgressBar", "ModelSummary"} <= callbacks.keys()
    for name, settings in {
        "OnlineKNN": {"k": 3, "every_n_epochs": 2, "temperature": 0.3, "bank": 9, "queries": 8},
        "Guard": {"every_n_steps": 4, "window": 7},
        "Checkpoint": {
            "every_n_steps": 2, "every_n_epochs": 3, "every_n_minutes": 1.5, "keep_every_n_epochs": 2
        },
        "Report": {"pairs": 6},
    }.items():  # fmt: skip
        assert {key: getattr(callbacks[name], key) for key in settings} == settings
    written = yaml.safe_load((run / "config.yaml").read_text())
    for change in changes:
        group, name = change.removeprefix("--").partition("=")[0].split(".")
        value = yaml.safe_load(change.partition("=")[2])
        assert written[group][name] == value or name == "max_time", change
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["settings"]
    assert {name: saved[name] for name in written} == written


def test_variables_of_the_environment_change_nothing(run, finished, monkeypatch):
    """jsonargparse reads settings from them where it is told to."""
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    for name in ("MODEL__INIT_ARGS__OPTIMIZER__LR", "DATA__BATCH_SIZE", "DATA__LIMIT"):
        monkeypatch.setenv(f"PL_{name}", "4")
    new = PretrainCLI(["--config", str(finished / "settings.yaml")], run.parent / "new").config.data
    assert (new.limit, new.batch_size) == (4, 8)  # of the settings it is told, even there, the file's come first
    before = yaml.safe_load((run / "config.yaml").read_text())
    assert resume("--trainer.max_epochs", 2) == 0
    before["trainer"]["max_epochs"] = 2
    assert yaml.safe_load((run / "config.yaml").read_text()) == before


@pytest.mark.parametrize(
    "stored",
    [
        {"default_root_dir": "run"},
        {"default_root_dir": "runs/demo"},
        {"logger": False},
        {"overfit_batches": 2},
        {"reload_dataloaders_every_n_epochs": 1},
    ],
)
def test_no_run_is_locked_out_by_what_it_was_begun_with(run, stored):
    """Those of earlier versions, which accepted more, and those whose folder has been moved."""
    change_everywhere(run, lambda settings: settings["trainer"].update(stored))
    run.rename(run.parent / "moved")
    assert main(["pretrain", "--resume", "moved", "--trainer.max_epochs", "2"]) == 0
    written = yaml.safe_load((run.parent / "moved" / "config.yaml").read_text())["trainer"]
    assert written["max_epochs"] == 2
    assert written["default_root_dir"] is None and written["logger"] is None


def test_a_run_of_before_phi_had_a_precision_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.yaml").write_text(AMCL + "trainer: {max_epochs: 1, accelerator: cpu, log_every_n_steps: 1}")
    image_folder(tmp_path / "images", 8, 2)
    assert main(["pretrain", "--config", "settings.yaml", "--data", "images", "--run_dir", "run"]) == 0

    def of_before(settings):
        del settings["model"]["init_args"]["criterion"]["init_args"]["temperature"]["init_args"]["precision"]

    change_everywhere(tmp_path / "run", of_before)
    assert resume("--trainer.max_epochs", 2) == 0
    assert "precision: auto" in (tmp_path / "run" / "config.yaml").read_text()


def test_the_folder_of_a_resumed_run_may_be_named_again(run, capsys):
    assert resume("--trainer.max_epochs", 2, "--trainer.default_root_dir", "elsewhere") == 2
    assert "default_root_dir must be the folder of the run, given as --run_dir, got elsewhere" in error(capsys)
    assert resume("--trainer.max_epochs", 2, "--trainer.logger", "false") == 2
    assert "trainer.logger must be loggers that join the run's own" in error(capsys)
    assert resume("--trainer.max_epochs", 2, "--trainer.default_root_dir", "run") == 0


def test_a_run_that_is_given_its_folder_as_lightning_names_it_may_be_moved(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = ["--config", str(finished / "settings.yaml"), "--data", str(finished / "images"), "--run_dir", "q"]
    assert main(["pretrain", *start, "--trainer.default_root_dir", "q"]) == 0
    (tmp_path / "q").rename(tmp_path / "q2")
    assert main(["pretrain", "--resume", "q2", "--trainer.max_epochs", "2"]) == 0


def test_a_time_that_is_used_up_is_told_with_the_way_on(run, capsys):
    """While it runs, and when it is resumed as it is."""
    (run.parent / "slow.py").write_text(
        "import lightning as L\n"
        "from lightning.pytorch.callbacks import Timer\n"
        "class Slow(L.Callback):\n"
        "    def on_train_batch_start(self, trainer, *_):\n"
        "        if trainer.global_step == 2:\n"
        "            next(one for one in trainer.callbacks if isinstance(one, Timer))._offset += 3600\n"
    )
    sys.path.insert(0, str(run.parent))
    try:
        assert resume("--trainer.max_epochs=3", "--trainer.max_time=00:01:00:00", "--trainer.callbacks=slow.Slow") == 0
    finally:
        sys.path.remove(str(run.parent))
    told = "stopped by trainer.max_time at step 3 of 6; go on with: amcl-fast pretrain --resume run "
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("stopped")]
    assert line == f"{told}--trainer.max_time null"
    assert json.loads((run / "run.json").read_text())["finished"] is False
    assert "not finished" in (run / "report" / "index.html").read_text()
    assert resume("--trainer.callbacks", "null") == 0
    assert f"{told}--trainer.max_time null\n" in capsys.readouterr().out
    assert json.loads((run / "run.json").read_text())["finished"] is False
    assert main([*line.partition(" amcl-fast ")[2].split(), "--trainer.callbacks", "null"]) == 0
    assert "stopped by" not in capsys.readouterr().out
    assert json.loads((run / "run.json").read_text())["finished"] is True
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6

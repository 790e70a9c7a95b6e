"""`amcl-fast pretrain --resume`: nothing in the run directory changes unless the run goes on; whose code it imports."""

import json
import os
import re
import shutil
import sys

import pytest
import torch
import yaml

from amcl_fast.cli import main
from amcl_fast.pretrain import PretrainCLI
from tests.helpers.command_line import AMCL, NT_XENT, image_folder

_SETTINGS = NT_XENT + "trainer: {max_epochs: 1, accelerator: cpu, log_every_n_steps: 1}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of one epoch, in a folder with its settings and images."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "settings.yaml").write_text(_SETTINGS)
    image_folder(folder / "images", 8, 2)
    run = ["--run_dir", str(folder / "run")]
    start = ["--config", str(folder / "settings.yaml"), "--data", str(folder / "images")]
    assert main(["pretrain", *start, *run]) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    """A copy of that run."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished / "run", tmp_path / "run", copy_function=os.link)  # whoever writes makes a new file
    for name in ("metrics.csv", "config.yaml"):
        shutil.copy(finished / "run" / name, tmp_path / "name")
        os.replace(tmp_path / "name", tmp_path / "run" / name)
    return tmp_path / "run"


def content(run):
    """Of all files but the lock's, which says who looked last."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def resume(*settings):
    return main(["pretrain", "--resume", "run", *map(str, settings)])


def error(capsys):
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("amcl-fast")]
    (line,) = lines
    return line


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
    monkeypatch.setattr("amcl_fast.pretrain._print_results", found.append)
    callback = "--trainer.callbacks={class_path: lightning.pytorch.callbacks.LearningRateMonitor}"
    changes = [
        "--trainer.max_epochs=9", "--trainer.max_steps=5", "--trainer.min_steps=1", "--trainer.min_epochs=1",
        "--trainer.max_time=00:01:00:00", "--trainer.log_every_n_steps=3", "--trainer.detect_anomaly=true",
        "--trainer.profiler=simple", "--trainer.enable_progress_bar=true", "--trainer.enable_model_summary=true",
        "--data.num_threads=2", "--data.prefetch=3", "--data.crop_pct=0.9", "--knn.k=3", "--knn.every_n_epochs=2",
        "--knn.temperature=0.3", "--knn.bank=9", "--knn.queries=8",
        "--guard.every_n_steps=4", "--guard.window=7", "--checkpoint.every_n_steps=2",
        "--checkpoint.every_n_epochs=3", "--checkpoint.every_n_minutes=1.5", "--checkpoint.keep_every_n_epochs=2",
        "--report.pairs=6",
    ]  # fmt: skip
    assert resume(*changes, callback) == 0
    (cli,) = found
    trainer, data = cli.trainer, cli.datamodule
    assert (trainer.max_epochs, trainer.max_steps, trainer.min_steps, trainer.min_epochs) == (9, 5, 1, 1)
    assert trainer.global_step == 5 and trainer.log_every_n_steps == 3
    assert trainer._detect_anomaly and type(trainer.profiler).__name__ == "SimpleProfiler"
    assert (data.num_threads, data.prefetch, data.crop_pct) == (2, 3, 0.9)
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


def rewritten(path, change):
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path.with_name("new"))
    os.replace(path.with_name("new"), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state["state_dict"].pop("backbone.conv1.weight"), "Missing key.*conv1"),
        (lambda state: state["optimizer_states"][0]["param_groups"].pop(), "parameter group"),
        (lambda state: state["exact_resume"]["loader"]["settings"].update(views="other"), "views was other"),
        (lambda state: state["exact_resume"].update(generators=[{}, {}]), "2 processes .* got 1"),
        (lambda state: state.pop("optimizer_states"), "weights without the state of their training"),
    ],
    ids=["weights", "optimiser", "loader", "processes", "weights alone"],
)
def test_a_checkpoint_that_does_not_load_leaves_the_run_as_it_was(run, change, message, capsys):
    rewritten(run / "checkpoints" / "last.ckpt", change)
    (run / "checkpoints" / "last.ckpt.partial").touch()
    before = content(run)
    assert resume("--trainer.max_epochs", 2) == 2
    assert re.search(message, error(capsys))
    assert content(run) == before


def test_a_folder_that_cannot_be_written_is_told_before_the_training(run, monkeypatch, capsys):
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: real(path, mode) and "checkpoints" not in str(path))
    assert resume("--trainer.max_epochs", 2) == 2
    assert "run/checkpoints cannot be written" in error(capsys)


DAMAGE = {
    "overwritten": lambda text: text.replace("width: 8", "width: 32"),
    "missing": None,
    "cut off": lambda text: text[:100] + "{",
    "half": lambda text: text[: text.index("data:")],
    "empty": lambda text: "",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_config_yaml_is_repaired_from_the_checkpoint(run, kind, capsys):
    config = run / "config.yaml"
    good = yaml.safe_load(config.read_text())
    config.unlink() if DAMAGE[kind] is None else config.write_text(DAMAGE[kind](config.read_text()))
    (run / "checkpoints" / "last.partial").touch()  # of a process that was killed
    assert resume("--trainer.max_epochs", 2) == 0
    out = capsys.readouterr().out
    assert out.startswith("run/config.yaml ") and "written again" in out.splitlines()[0]
    good["trainer"]["max_epochs"] = 2
    assert yaml.safe_load(config.read_text()) == good
    assert not list(run.rglob("*.partial"))


def test_settings_of_a_resume_that_was_killed_at_once_hold(run, capsys):
    """config.yaml is newer than the checkpoint, and differs in what may change alone."""
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("max_epochs: 1", "max_epochs: 2"))
    assert resume() == 0
    out = capsys.readouterr().out
    assert "after epoch 2" in out and "written again" not in out


def test_a_run_that_was_killed_before_its_first_save_begins_anew(run, capsys):
    whole = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    rows = (run / "metrics.csv").read_text().count("\n")
    shutil.rmtree(run / "checkpoints")
    assert resume() == 0
    assert "holds no checkpoint" in capsys.readouterr().out
    again = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, whole[name]) for name, value in again.items())
    assert (run / "metrics.csv").read_text().count("\n") == rows


def test_a_bomb_is_refused_not_repaired(run, capsys):
    config = run / "config.yaml"
    config.write_text("a0: &a [x, x]\n" + "".join(f"a{i}: &a [*a, *a]\n" for i in range(60)))
    before = content(run)
    assert resume() == 2
    assert "config.yaml is refused" in error(capsys)
    config.write_text("[" * 100_000)
    assert resume() == 2
    assert "levels deep" in error(capsys)
    assert content(run).keys() == before.keys()


@pytest.fixture
def stranger(run, monkeypatch):
    """A run whose settings name a class of somebody's, which leaves a trace when it is imported."""
    folder = run.parent
    (folder / "their_code.py").write_text(
        "from pathlib import Path\nimport lightning as L\nPath('imported').touch()\nclass Theirs(L.Callback): pass\n"
    )
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "their_code", raising=False)
    config = run / "config.yaml"
    text = config.read_text().replace("callbacks: null", "callbacks: [{class_path: their_code.Theirs}]")
    assert "their_code" in text
    config.write_text(text)
    return folder


def test_their_code_is_not_imported_unless_trusted(stranger, capsys):
    before = content(stranger / "run")
    assert resume("--trainer.max_epochs", 2) == 2
    line = error(capsys)
    assert "trainer.callbacks[0].class_path: their_code.Theirs" in line and "--trust" in line
    assert not (stranger / "imported").exists() and content(stranger / "run") == before
    assert resume("--trainer.max_epochs", 2, "--trust") == 0
    assert (stranger / "imported").exists()


def test_their_code_can_be_left_out(stranger):
    assert resume("--trainer.max_epochs", 2, "--trainer.callbacks", "null") == 0
    assert not (stranger / "imported").exists()


def test_a_checkpoint_beside_which_there_is_no_run(run, tmp_path, monkeypatch, capsys):
    (folder := tmp_path / "elsewhere").mkdir()
    shutil.copy(run / "checkpoints" / "last.ckpt", folder)
    for path, place in ((folder / "last.ckpt", tmp_path), ("last.ckpt", folder)):
        monkeypatch.chdir(place)
        assert main(["pretrain", "--resume", str(path)]) == 2
        assert "does not lie in a run directory" in error(capsys)
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"]


def test_a_run_whose_last_save_is_gone_but_not_its_others_does_not_begin_anew(run, capsys):
    os.replace(run / "checkpoints" / "last.ckpt", run / "checkpoints" / "epoch-0001.ckpt")
    before = content(run)
    assert resume("--trainer.max_epochs", 2) == 2
    assert "the run has saved others: give one of these, run/checkpoints/epoch-0001.ckpt" in error(capsys)
    assert content(run) == before
    (run / "checkpoints" / "epoch-0001.ckpt").unlink()
    (run / "checkpoints" / "last.ckpt").symlink_to("/nowhere/last.ckpt")
    assert resume("--trainer.max_epochs", 2) == 2
    assert "run/checkpoints/last.ckpt is no file" in error(capsys)


def test_a_resume_from_an_earlier_checkpoint_keeps_what_is_later(run, capsys):
    keep = ("--checkpoint.keep_every_n_epochs", 1)
    assert resume("--trainer.max_epochs", 2, *keep) == 0
    last, rows = (run / "checkpoints" / "last.ckpt").read_bytes(), (run / "metrics.csv").read_bytes()
    assert resume("--trainer.max_epochs", 3, *keep) == 0
    step = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    capsys.readouterr()
    assert main(["pretrain", "--resume", "run/checkpoints/epoch-0002.ckpt"]) == 0
    assert f"which is later: it is kept as run/checkpoints/last-step-{step}.ckpt" in capsys.readouterr().out
    kept = torch.load(run / "checkpoints" / f"last-step-{step}.ckpt", weights_only=True)
    assert kept["global_step"] == step
    assert (run / f"metrics-step-{step}.csv").read_bytes().startswith(rows[: rows.index(b"\n")])
    assert last != (run / "checkpoints" / f"last-step-{step}.ckpt").read_bytes()


def change_everywhere(run, change):
    """Change the settings of a run as an earlier version may have written them."""
    config = run / "config.yaml"
    settings = yaml.safe_load(config.read_text())
    change(settings)
    config.write_text(yaml.safe_dump(settings))
    rewritten(run / "checkpoints" / "last.ckpt", lambda state: change(state["settings"]))


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
    assert "default_root_dir is the folder of the run: give it as --run_dir, got elsewhere" in error(capsys)
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
        "import time, lightning as L\n"
        "class Slow(L.Callback):\n"
        "    def on_train_batch_start(self, trainer, *_):\n"
        "        if trainer.global_step == 2: time.sleep(1.1)\n"
    )
    sys.path.insert(0, str(run.parent))
    try:
        assert resume("--trainer.max_epochs=3", "--trainer.max_time=00:00:00:01", "--trainer.callbacks=slow.Slow") == 0
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

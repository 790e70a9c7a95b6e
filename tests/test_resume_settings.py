"""`amcl-fast pretrain --resume`: nothing in the run directory changes unless the run goes on; whose code it imports."""

import os
import re
import shutil
import sys

import pytest
import torch
import yaml
from command_line import NT_XENT, image_folder

from amcl_fast.cli import main

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
    ],
)
def test_settings_that_must_stay_are_refused_by_name(run, settings, named, capsys):
    before = content(run)
    assert resume("--trainer.max_epochs", 2, *settings) == 2
    assert named in error(capsys)
    assert content(run) == before


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

"""`amcl-fast pretrain --resume`: nothing in the run directory changes unless the run goes on; what is repaired."""

import os
import re
import shutil

import pytest
import torch
import yaml

from amcl_fast.cli import main
from amcl_fast.runs.files import partial_name
from tests.helpers.command_line import saved_step
from tests.helpers.resuming import content, error, resume, rewritten

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state["state_dict"].pop("backbone.conv1.weight"), "Missing key.*conv1"),
        (lambda state: state["optimizer_states"][0]["param_groups"].pop(), "parameter group"),
        (lambda state: state["exact_resume"]["loader"]["settings"].update(views="other"), "views was other"),
        (lambda state: state["exact_resume"].update(generators=[{}, {}]), "random generators cannot be restored"),
        (lambda state: state.pop("optimizer_states"), "weights without the state of their training"),
    ],
    ids=["weights", "optimiser", "loader", "generators", "weights alone"],
)
def test_a_checkpoint_that_does_not_load_leaves_the_run_as_it_was(run, change, message, capsys):
    rewritten(run / "checkpoints" / "last.ckpt", change)
    partial_name(run / "checkpoints" / "last.ckpt").touch()
    before = content(run)
    assert resume("--trainer.max_epochs", 2) == 2
    assert re.search(message, error(capsys))
    assert content(run) == before


@pytest.mark.parametrize("name", ["tensorboard", "snapshots", "report"])
def test_a_file_in_the_place_of_a_folder_is_told_before_the_training(run, name, capsys):
    shutil.rmtree(run / name, ignore_errors=True)
    (run / name).touch()
    before = content(run)
    assert resume("--trainer.max_epochs", 2) == 2
    assert error(capsys) == f"amcl-fast pretrain: error: run/{name} must be a folder, and is none: remove it"
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
    partial_name(run / "checkpoints" / "last.ckpt").touch()  # of a process that was killed
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
    step = saved_step(run)
    capsys.readouterr()
    assert main(["pretrain", "--resume", "run/checkpoints/epoch-0002.ckpt"]) == 0
    assert f"which is later: it is kept as run/checkpoints/last-step-{step}.ckpt" in capsys.readouterr().out
    kept = torch.load(run / "checkpoints" / f"last-step-{step}.ckpt", weights_only=True)
    assert kept["global_step"] == step
    assert (run / f"metrics-step-{step}.csv").read_bytes().startswith(rows[: rows.index(b"\n")])
    assert last != (run / "checkpoints" / f"last-step-{step}.ckpt").read_bytes()

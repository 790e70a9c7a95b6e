"""What somebody has planted in a run directory or a cache: whatever writes there, what it leads to stays as it is."""

import os
import shutil
from pathlib import Path

import pytest

from amcl_fast.callbacks import draw_report
from amcl_fast.cli import main
from amcl_fast.data.convert import convert
from amcl_fast.data.shards.pack import pack
from amcl_fast.data.sources import builtin
from amcl_fast.runs.directory import RunDirectory
from amcl_fast.runs.files import partial_name
from tests.helpers.command_line import NT_XENT, image_folder

_SETTINGS = NT_XENT + "trainer: {max_epochs: 1, accelerator: cpu, log_every_n_steps: 1}"
_FOLDERS = ("checkpoints", "tensorboard", "snapshots", "report")


def everything(*begin):
    """All that writes into the directory of a run, which begins or goes on."""
    assert main(["pretrain", *begin]) == 0
    assert main(["evaluate", "run", "--epochs=1", "--batch_size=8"]) == 0
    assert main(["export", "run"]) == 0
    assert main(["export", "run", "--hub=user/model"]) == 0
    assert main(["report", "run"]) == 0


def files(folder):
    """Names of what lies below, those aside that no writer can be led by: they are new each time."""
    found = (path for path in Path(folder).rglob("*") if not path.is_dir() and path.parent.name != "tensorboard")
    return {str(path.relative_to(folder)) for path in found}


def content(folder):
    """All that is below, as it is."""
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with images, and a run of one epoch of which all was written that is."""
    folder = tmp_path_factory.mktemp("whole")
    image_folder(folder / "images", 8, 2)
    (folder / "images" / "train" / "a" / "damaged.jpg").write_bytes(b"no image")
    (folder / "tiny.yaml").write_text(_SETTINGS)
    with pytest.MonkeyPatch.context() as here:
        here.chdir(folder)
        here.setattr(draw_report, "write_report", lambda run_dir: None)  # which `report` does
        keep = "--checkpoint.keep_every_n_epochs=1"
        everything("--config=tiny.yaml", f"--data={folder / 'images'}", "--run_dir=run", keep)
    return folder / "run"


@pytest.fixture
def run(undrawn, whole, tmp_path, monkeypatch):
    """The same run, in a folder of its own."""
    pytest.importorskip("safetensors")
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    return Path("run")


def test_no_target_of_a_planted_link_is_changed(run, tmp_path):
    names = files(run)
    assert names >= {
        "config.yaml", "metrics.csv", "run.json", "skipped_files.txt", "checkpoints/last.ckpt", "report/index.html",
        "checkpoints/epoch-0001.ckpt", "snapshots/before.npz", "snapshots/after.npz", "evaluation-images.json",
        "backbone.safetensors", "hub/model.safetensors", "hub/README.md", ".lock",
    }  # fmt: skip
    names = names - {".lock"} | {"checkpoints/epoch-0002.ckpt", "hub/config.json"}
    for number, name in enumerate(sorted(names)):
        link, target = run / name, tmp_path / "elsewhere" / str(number)
        if link.exists():
            link.rename(target)
        link.symlink_to(target)
        for partial in (partial_name(link), link.with_name(f"{link.name}.partial")):  # the latter of earlier versions
            partial.symlink_to(target)
    (tmp_path / "elsewhere" / "lock").write_text("untouched")
    (run / ".lock").unlink()
    (run / ".lock").hardlink_to(tmp_path / "elsewhere" / "lock")
    before = content("elsewhere")
    everything("--resume=run", "--trainer.max_epochs=2")
    assert content("elsewhere") == before
    replaced = {name for name in names if not (run / name).is_symlink()}
    kept = {"snapshots/before.npz", "checkpoints/epoch-0001.ckpt", "hub/config.json"}
    assert names - replaced == kept - {"hub/config.json"}  # of earlier steps; what is not of this encoder is removed
    assert not list(run.rglob("*.*.partial.*"))


@pytest.mark.parametrize("name", [*_FOLDERS, "hub"])
def test_a_folder_that_is_a_link_is_told_before_the_work_and_not_written(run, whole, tmp_path, capsys, name):
    theirs = tmp_path / "elsewhere" / name
    (run / name).rename(theirs)
    (theirs / "film.partial").touch()
    partial_name(theirs / "file").touch()
    (run / name).symlink_to(theirs)
    commands = [["pretrain", "--resume=run", "--trainer.max_epochs=2"]] * (name in _FOLDERS)
    auto = ["--resume=auto", "--run_dir=run", f"--config={whole.parent / 'tiny.yaml'}", "--trainer.max_epochs=2"]
    before = content(tmp_path)
    commands += [["pretrain", *auto]] * (name in _FOLDERS)
    commands += {"report": [["report", "run"]], "hub": [["export", "run", "--hub=user/model"]]}.get(name, [])
    capsys.readouterr()
    for command in commands:
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        told = f"run/{name} is a link to {theirs}, and nothing is written through it: remove it"
        assert line == f"amcl-fast {command[0]}: error: {told}"
    assert commands and content(tmp_path) == before


def test_folders_of_a_run_are_those_that_are_refused(whole):
    """None that a training makes is missing in `RunDirectory.folders`."""
    made = {path for path in whole.iterdir() if path.is_dir()}
    assert made == {*RunDirectory(whole).folders, whole / "hub"}


@pytest.mark.timeout(120)
def test_a_run_directory_may_be_a_link_itself_and_in_it_nobody_is_waited_for(run, whole, tmp_path, capsys):
    (tmp_path / "scratch").mkdir()
    run.rename(tmp_path / "scratch" / "run")
    run.symlink_to(tmp_path / "scratch" / "run")
    written = ["metrics.csv", "run.json", "skipped_files.txt", "snapshots/after.npz", "report/index.html"]
    others = ["evaluation-images.json", "measures.json", "backbone.safetensors"]
    for name in written + others:
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)
    assert main(["report", "run"]) == 2
    more = [f"--config={whole.parent / 'tiny.yaml'}", f"--data={whole.parent / 'images'}", "--trainer.max_epochs=2"]
    assert main(["pretrain", "--resume=auto", "--run_dir=run", *more]) == 0
    assert run.is_symlink() and (run / "checkpoints" / "epoch-0002.ckpt").is_file()
    for command in (["evaluate", "run", "--epochs=1"], ["export", "run"]):
        capsys.readouterr()
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(" is no regular file, and would be replaced by one")
    assert all((run / name).is_file() for name in written) and all((run / name).is_fifo() for name in others)


def test_neither_a_pack_nor_a_conversion_is_led_elsewhere(whole, tmp_path):
    images, theirs = whole.parent / "images", tmp_path / "theirs"
    theirs.mkdir()
    for name in ("1", "2", "lock"):
        (theirs / name).write_text("untouched")
    before = content(theirs)
    shards = tmp_path / "shards"
    pack(images, shards, shuffle=False)
    for name in files(shards):
        (shards / name).unlink()
        (shards / name).symlink_to(theirs / "1")
    (shards / "manifest.json").unlink()
    with pytest.raises(ValueError, match="must be empty"):  # what is no shard of ours is kept
        pack(images, shards, shuffle=False)
    for path in shards.iterdir():
        path.unlink()
    (shards / ".lock").hardlink_to(theirs / "lock")
    partial_name(shards / "train-000000.tar").symlink_to(theirs / "2")
    assert pack(images, shards, shuffle=False).images == 20
    (tmp_path / "converted").mkdir()
    (tmp_path / "converted" / "train").symlink_to(theirs)
    with pytest.raises(OSError, match=r"^.*/converted/train is a link to .*/theirs, and nothing is written through"):
        convert(images, tmp_path / "converted")
    assert content(theirs) == before


def test_images_that_are_drawn_go_nowhere_else(tmp_path, monkeypatch):
    monkeypatch.setattr(builtin, "SPLITS", {"train": 1, "test": 1})
    theirs, datasets = tmp_path / "theirs", tmp_path / "cache" / "datasets"
    theirs.mkdir()
    datasets.mkdir(parents=True)
    name = f"builtin-{builtin.VERSION}"
    for planted in (datasets / f".{name}.partial", partial_name(datasets / name)):
        planted.symlink_to(theirs)
    (theirs / "lock").write_text("untouched")
    (datasets / f".{name}.lock").hardlink_to(theirs / "lock")
    folder = builtin.prepare_builtin(tmp_path / "cache")
    assert folder == datasets / name and not folder.is_symlink() and len(list(folder.rglob("*.jpg"))) == 20
    assert content(theirs) == {theirs / "lock": b"untouched"}

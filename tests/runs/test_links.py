"""Links that somebody has planted in a run directory: whatever writes there, what they lead to stays as it is."""

from pathlib import Path

import pytest

from amcl_fast.cli import main
from tests.helpers.command_line import NT_XENT, image_folder

_SETTINGS = NT_XENT + "trainer: {max_epochs: 1, accelerator: cpu, log_every_n_steps: 1}"


def everything(run, start):
    """All that writes into the directory of a run, after its first epoch or from its start."""
    begin = ["--resume", run, "--trainer.max_epochs=2"] if start is None else [*start, "--trainer.max_epochs=2"]
    assert main(["pretrain", *begin]) == 0
    assert main(["evaluate", run, "--epochs=1", "--batch_size=8"]) == 0
    assert main(["export", run]) == 0
    assert main(["report", run]) == 0


def files(folder):
    return {
        str(path.relative_to(folder))
        for path in Path(folder).rglob("*")
        if not path.is_dir() and path.name != ".lock" and path.parent.name != "tensorboard"
    }


def test_no_target_of_a_planted_link_is_changed(tmp_path, monkeypatch, capsys):
    pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "images", 8, 2)
    (tmp_path / "images" / "train" / "a" / "damaged.jpg").write_bytes(b"no image")
    (tmp_path / "tiny.yaml").write_text(_SETTINGS)
    start = ["--config=tiny.yaml", "--data=images", "--checkpoint.keep_every_n_epochs=2"]
    everything("whole", [*start, "--run_dir=whole"])
    names = files("whole")
    assert names >= {
        "config.yaml", "metrics.csv", "run.json", "skipped_files.txt", "checkpoints/last.ckpt", "report/index.html",
        "checkpoints/epoch-0002.ckpt", "snapshots/before.npz", "snapshots/after.npz", "evaluation-images.json",
        "backbone.safetensors",
    }  # fmt: skip
    assert main(["pretrain", *start, "--run_dir=run"]) == 0
    targets = {}
    for number, name in enumerate(sorted(names)):
        link, target = Path("run", name), tmp_path / "elsewhere" / str(number)
        target.parent.mkdir(exist_ok=True)
        link.parent.mkdir(exist_ok=True)
        if link.exists():
            link.rename(target)
        targets[name] = target, target.read_bytes() if target.exists() else None
        link.symlink_to(target)
    everything("run", None)
    changed = [
        name for name, (target, was) in targets.items() if (target.read_bytes() if target.exists() else None) != was
    ]
    assert changed == []
    replaced = {name for name in names if not Path("run", name).is_symlink()}
    assert names - replaced == {"snapshots/before.npz"}  # the first look is taken once

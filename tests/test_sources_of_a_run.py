"""Whole runs on what is no folder of classes, and with views in half precision."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from amcl_fast.cli import main
from amcl_fast.runs.read import read_run
from tests.helpers.command_line import AMCL, NT_XENT
from tests.helpers.small_shards import noise, samples, write_shards

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("undrawn")]

STEPS = "trainer: {max_steps: 6, accelerator: cpu, log_every_n_steps: 1}"


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture
def shards(tmp_path):
    parts = {
        f"{part}-{n}.tar": samples(range(12 * n, 12 * n + size), 2, noise)
        for part, size in (("train", 12), ("val", 4))
        for n in range(2)
    }
    return write_shards(tmp_path / "shards", parts)


@pytest.mark.parametrize("kind", ["folder without labels", "list", "list with labels"])
def test_a_run_goes_on_in_mid_epoch_with_the_same_weights(tmp_path, monkeypatch, kind):
    """On what is neither a folder of classes nor shards (below): 27 images, 3 steps an epoch, stopped after 4 steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("amcl_fast.optim.lr_factor", lambda *place: 1.0)
    lines = []
    for number in range(27):
        path = tmp_path / "images" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(noise(number))
        lines.append(f"{path}\t{number % 2}\n" if kind == "list with labels" else f"{path}\n")
    Path("list.txt").write_text("".join(lines))
    Path("run.yaml").write_text(NT_XENT + STEPS)
    start = ["pretrain", "--config", "run.yaml", "--data", "images" if kind == "folder without labels" else "list.txt"]
    assert main([*start, "--run_dir", "whole"]) == 0
    assert main([*start, "--run_dir", "parts", "--trainer.max_steps", "4"]) == 0
    assert main(["pretrain", "--resume", "parts", "--trainer.max_steps", "6"]) == 0
    ours, theirs = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], value) for name, value in theirs.items())
    steps = {name: list(read_run(tmp_path / name).series("loss")[1]) for name in ("parts", "whole")}
    assert steps["parts"] == steps["whole"] and len(set(steps["whole"])) == 6


def test_a_run_on_shards_goes_on_in_mid_epoch_and_is_evaluated_from_anywhere(shards, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("amcl_fast.optim.lr_factor", lambda *place: 1.0)  # whatever the length of the training
    Path("run.yaml").write_text(NT_XENT + STEPS)
    start = [
        "pretrain",
        "--config",
        "run.yaml",
        "--data",
        "shards/train-{0..1}.tar",
        "--data.held_out",
        "shards/val-{0..1}.tar",
    ]
    assert main([*start, "--run_dir", "whole"]) == 0
    assert main([*start, "--run_dir", "parts", "--trainer.max_steps", "4"]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["pretrain", "--resume", str(tmp_path / "parts"), "--trainer.max_steps", "6"]) == 0
    ours, theirs = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    data = yaml.safe_load((tmp_path / "whole" / "config.yaml").read_text())["data"]
    assert (data["root"], data["held_out"]) == (f"{shards}/train-{{0..1}}.tar", f"{shards}/val-{{0..1}}.tar")
    assert read_run(tmp_path / "parts").facts
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "whole"), "--epochs", "1", "--k", "3", "--output", "found.json"]) == 0
    assert "24 to learn from, 8 held out" in capsys.readouterr().out
    assert json.loads(Path("found.json").read_text())["held_out"] == data["held_out"]
    other = ["--data", str(shards), "--held_out", str(shards / "val-0.tar")]
    assert (
        main(["evaluate", str(tmp_path / "whole"), "--epochs", "1", "--k", "3", "--output", "found.json", *other]) == 0
    )
    assert "24 to learn from, 4 held out" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-true"])
def test_every_precision_trains_on_views_in_half(shards, tmp_path, precision, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(AMCL + "trainer: {max_epochs: 1, accelerator: cpu, log_every_n_steps: 1}")
    losses = {}
    for dtype in ("float16", "float32"):
        options = ["--trainer.precision", precision, "--data.dtype", dtype, "--run_dir", dtype]
        assert main(["pretrain", "--config", "run.yaml", "--data", str(shards), *options]) == 0
        losses[dtype] = list(read_run(tmp_path / dtype).series("loss")[1])
    assert len(losses["float16"]) == 3
    assert losses["float16"][0] == pytest.approx(losses["float32"][0], rel=0.02)
    assert losses["float16"] == pytest.approx(losses["float32"], rel=0.2)  # later steps drift apart

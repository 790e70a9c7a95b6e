"""A run on images without classes that is measured on another data set, while it trains and after it."""

import json
import re

import pytest
import torch
import yaml

from amcl_fast.cli import main
from amcl_fast.encoder import load_encoder
from tests.helpers.command_line import NT_XENT, image_folder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("undrawn")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images without classes, others with classes, a run, and those with classes moved since."""
    folder = tmp_path_factory.mktemp("elsewhere")
    image_folder(folder / "flat", 8, 1)
    (folder / "flat" / "train" / "a").rename(folder / "loose")
    image_folder(folder / "classes", 8, 2)
    settings = f"{NT_XENT}trainer: {{max_epochs: 1, accelerator: cpu}}\nknn: {{probe_epochs: 2}}"
    (folder / "settings.yaml").write_text(settings)
    run = ["pretrain", "--config", str(folder / "settings.yaml"), "--run_dir", str(folder / "run")]
    assert main([*run, "--data", str(folder / "loose"), "--data.evaluation", str(folder / "classes")]) == 0
    (folder / "classes").rename(folder / "moved")
    return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


def test_it_has_knn_and_probe_and_goes_on_where_its_classes_have_moved(folder, capsys):
    assert main(["pretrain", "--resume", "run", "--data.evaluation", "moved", "--trainer.max_epochs", "2"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"epoch 2/2 .* kNN \S+ %  probe ", out) and "\nlinear probe\n  untrained encoder " in out
    header, *rows = (line.split(",") for line in (folder / "run/metrics.csv").read_text().splitlines())
    told = {name: sum(bool(row[header.index(f"probe/{name}")]) for row in rows) for name in ("accuracy", "untrained")}
    assert told == {"accuracy": 2, "untrained": 1}
    assert json.loads((folder / "run/run.json").read_text())["training_images"] == 8
    assert yaml.safe_load((folder / "run/config.yaml").read_text())["data"]["evaluation"].endswith("moved")
    assert main(["evaluate", "run", "--epochs", "1"]) == 0
    told = "moved: 16 images in 2 classes (train/), 4 held out (test/), 16 px\nimages      16 to learn from, 4 held out"
    assert told in capsys.readouterr().out
    assert main(["pretrain", "--resume", "run", "--data.evaluation", "null"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "data.evaluation from " in line and "(without it a part of data.root is measured on" in line


def test_what_it_was_measured_on_is_what_it_is_fine_tuned_on(folder, capsys):
    data = ["--data", "moved"]
    tuning = ["evaluate", "run", "--fine_tune", "--epochs", "1", "--batch_size", "4", "--rates", "0.1", "0.01", *data]
    assert main([*tuning, "--label_fraction", "0.5", "--seed", "1", "--save-encoder", "tuned.safetensors"]) == 0
    out = capsys.readouterr().out
    assert "8 to learn from, 0.5 of the labels; sgd, 1 epochs, batch 4" in out and "of 4 held out" in out
    assert re.search(r"It is the (lowest|highest) of those tried", out)
    found = json.loads((folder / "run/fine-tuning-moved-0.5.json").read_text())
    assert (found["training_images"], found["queries"], found["fine_tuning"]["seed"]) == (8, 4, 1)
    assert f"fine-tuned  {found['fine_tuning']['top1']:.2f} %" in out
    before, after = (load_encoder(folder / name) for name in ("run", "tuned.safetensors"))
    assert after.origin["run"] == "run" and after.origin["fine_tuned"].startswith(f"{folder}/moved, rate 0.")
    assert not torch.equal(*(next(encoder.backbone.parameters()) for encoder in (before, after)))
    for arguments, told in (
        ([*tuning, "--label_fraction", "0.05"], "an image of each of 2 classes, got 0.05 of 16 images"),
        ([*tuning, "--label_fraction", "1.5"], "label_fraction must be above 0 and at most 1, got 1.5"),
        ([*tuning, "--optimizer", "adam"], "optimizer must be sgd or adamw, got 'adam'"),
        ([*tuning, "--half"], "--half must be left out with --fine_tune, got True"),
        ([*tuning, "--layer_decay", "0.5"], "layer_decay must be unset with ResNetEncoder"),
        ([*tuning, "--save_encoder", "tuned.bin"], "save_encoder must end in .safetensors, got tuned.bin"),
        (["evaluate", "run", "--seed", "1"], "--seed must be left out without --fine_tune, got 1"),
        (["evaluate", "run", "--k", "0"], "k must be at least 1, got 0"),
        (["evaluate", "run", "--epochs", "0"], "epochs must be at least 1, got 0"),
        (["evaluate", "run", "--data", "loose"], "kNN and linear probe cannot be measured on"),
    ):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line

"""Whole runs with more than two views of an image, and with views of two sizes."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from amcl_fast.cli import main
from amcl_fast.recipes import FRAMEWORKS
from amcl_fast.report import Snapshot
from amcl_fast.runs.directory import RunDirectory
from amcl_fast.runs.read import read_run
from tests.helpers.command_line import NT_XENT, image_folder
from tests.helpers.recipes import build
from tests.helpers.resuming import change_everywhere, error, resume

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("undrawn")]

# The smallest; CAN's has patches of 4 pixels.
ENCODER = dict.fromkeys(set(FRAMEWORKS) - {"can"}, "width=8") | {
    "can": "arguments={patch_size: 4, embed_dim: 12, depth: 1, num_heads: 3, global_pool: avg, fc_norm: false}"
}
VIEWS = {
    "four": "4",
    "two sizes": "[{count: 2}, {count: 2, size: 8, crop_scale: [0.05, 0.25], blur: 0.5}]",
    "one target": "[{size: 8}, {count: 1}, {size: 12}]",
}
STEPS = "trainer: {max_steps: 6, accelerator: cpu, log_every_n_steps: 1}\n"
QUICK = ["--knn.every_n_epochs=0", "--knn.before_training=false"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"), 14, 4)  # three steps of eight images an epoch


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize(
    ("framework", "views"), [*product(FRAMEWORKS, ("four", "two sizes")), ("simclr", "one target")]
)
def test_every_framework_trains_on_any_views(framework, views, images, tmp_path):
    run = tmp_path / "run"
    small = ["--model.projector.hidden_dim=16", "--model.projector.dim=8", f"--model.backbone.{ENCODER[framework]}"]
    small += ["--data.size=16", "--data.batch_size=8", "--data.device=cpu", "--trainer.max_steps=2"]
    if framework != "barlow":
        small.append("--model.criterion.temperature.dim=8")
    start = ["pretrain", "--recipe", f"{framework}-builtin-amcl", "--data", str(images), "--run_dir", str(run)]
    assert main([*start, *small, *QUICK, "--trainer.log_every_n_steps=1", f"--data.views={VIEWS[views]}"]) == 0
    losses = read_run(run).series("loss")[1]
    assert len(losses) == 2 and np.isfinite(losses).all()
    shot = Snapshot.load(RunDirectory(run).snapshot("after"))
    assert shot.views.shape[2:] == (16, 16, 3)
    assert np.isfinite(shot.positive_similarity).all()


def test_a_run_with_views_of_two_sizes_goes_on_in_mid_epoch_with_the_same_weights(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("amcl_fast.optim.lr_factor", lambda *place: 1.0)  # whatever the length of the training
    Path("run.yaml").write_text(NT_XENT + STEPS)
    start = ["pretrain", "--config", "run.yaml", "--data", str(images), *QUICK, "--data.views", VIEWS["two sizes"]]
    assert main([*start, "--run_dir", "whole"]) == 0
    assert main([*start, "--run_dir", "parts", "--trainer.max_steps", "4"]) == 0
    assert main(["pretrain", "--resume", "parts", "--trainer.max_steps", "6"]) == 0
    ours, theirs = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], value) for name, value in theirs.items())
    settings = [yaml.safe_load(Path(name, "config.yaml").read_text())["data"]["views"] for name in ("parts", "whole")]
    assert settings[0] == settings[1] and [group["size"] for group in settings[0]] == [None, 8]


def test_a_run_from_before_there_were_groups_goes_on_and_other_views_are_refused(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(NT_XENT + STEPS)
    both = ["--data.views", "[{blur: 1.0}, {blur: 0.1}]"]
    start = ["pretrain", "--config", "run.yaml", "--data", str(images), *QUICK, *both]
    assert main([*start, "--run_dir", "run", "--trainer.max_steps", "4"]) == 0

    def as_it_was(settings):
        for view in settings["data"]["views"]:
            assert (view.pop("count"), view.pop("size")) == (1, None)

    change_everywhere(Path("run"), as_it_was)
    assert resume("--trainer.max_steps", "6") == 0
    assert len(read_run(Path("run")).series("loss")[1]) == 6
    capsys.readouterr()
    assert resume("--trainer.max_steps", "8", "--data.views", "[{blur: 1.0}, {blur: 0.1, size: 8}]") == 2
    assert "data.views" in error(capsys)


VIT = """
data: {size: 32, batch_size: 8, num_threads: 1, device: cpu}
model:
  class_path: amcl_fast.methods.SimCLR
  init_args:
    backbone:
      name: timm/vit_tiny_patch16_224
      arguments: {patch_size: 8, embed_dim: 24, depth: 1, num_heads: 3}
    projector: {heads: 1, hidden_dim: 16, dim: 8}
    criterion:
      class_path: amcl_fast.SimCLRLoss
      init_args: {temperature: 0.2, negatives: softmax, include_positive: true, backend: reference}
"""


def test_a_vit_is_built_for_the_sizes_of_its_views_or_refused_before_the_images_are_looked_for(
    images, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(VIT + STEPS)

    def pretrain(size, *settings, data=images):
        views = f"[{{count: 1}}, {{size: {size}}}]"
        start = ["pretrain", "--config", "run.yaml", "--data", str(data), *QUICK, "--run_dir", "run"]
        return main([*start, "--trainer.max_steps=1", f"--data.views={views}", *settings])

    assert pretrain(20, data="nowhere") == 2
    assert "must take images of each size of data.views, got none of 20 × 20 px" in error(capsys)
    assert pretrain(16, '--model.backbone.arguments={"dynamic_img_size": false, "patch_size": 8}', data="nowhere") == 2
    assert "model.backbone.arguments dynamic_img_size: true" in error(capsys)
    assert not Path("run").exists()
    assert pretrain(16) == 0
    backbone = yaml.safe_load(Path("run", "config.yaml").read_text())["model"]["init_args"]["backbone"]
    assert backbone["arguments"]["dynamic_img_size"] is True and backbone["arguments"]["depth"] == 1
    assert resume("--trainer.max_steps", "2") == 0


@pytest.mark.parametrize(
    ("given", "blurs"),
    [
        (["--data.views=5"], [1.0, 0.1, 1.0, 0.1, 1.0]),
        (["--data.views", "2"], [1.0, 0.1]),
        (["--data.views", "3", "--data.augmentation=abe"], [0.5, 0.5, 0.5]),
        (["--data.views=[{count: 3, blur: 0.25}]"], [0.25, 0.25, 0.25]),
    ],
)
def test_a_number_of_views_takes_those_of_the_recipe_in_turn(given, blurs, tmp_path):
    data = build("barlow-imagenet1k-baseline", tmp_path, *given).datamodule
    assert [view.blur for view in data.views] == blurs


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--data.augmentation=abe"], "data.augmentation must be left out where data.views lists views"),
        (["--config=GROUPS", "--data.views=4"], "data.views must be groups where a recipe or file lists groups, got 4"),
        (["--data.views=100000000000"], "views must be at least 2 and at most 256, got 100000000000"),
    ],
)
def test_what_views_cannot_mean_is_refused(given, message, tmp_path):
    file = tmp_path / "groups.yaml"
    file.write_text("data: {views: [{count: 2}, {count: 2, size: 96}]}\n")
    settings = [part for one in given for part in one.replace("GROUPS", str(file)).split("=")]
    with pytest.raises(ValueError, match=message):
        build("barlow-imagenet1k-baseline", tmp_path, *settings)

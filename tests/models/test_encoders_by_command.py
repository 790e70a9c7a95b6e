"""The command line with a tiny ViT and with a class of one's own: train, go on, evaluate, export."""

import sys

import pytest
import torch
import yaml

from amcl_fast.cli import main
from amcl_fast.encoder import load_encoder
from tests.helpers.command_line import image_folder, saved_step
from tests.helpers.resuming import error

timm = pytest.importorskip("timm")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("undrawn")]

VIT = "{patch_size: 4, embed_dim: 12, depth: 2, num_heads: 3}"
SETTINGS = ["--data.batch_size=16", "--data.num_threads=1", "--data.device=cpu", "--data.size=16"]
SETTINGS += ["--trainer.max_epochs=1", "--trainer.log_every_n_steps=1", "--model.projector.hidden_dim=16"]
SETTINGS += ["--model.schedule.warmup_epochs=0", "--knn.every_n_epochs=1"]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    images = image_folder(tmp_path / "images", 20, 2)

    def arguments(name, *settings):
        return ["pretrain", "--recipe", name, "--data", str(images), *SETTINGS, *settings]

    return arguments


def test_a_vit_of_all_settings(recipe, tmp_path, capsys):
    """Weights of a file that is gone afterwards: a checkpoint has them, and a run that goes on needs no file."""
    pytest.importorskip("safetensors")
    torch.manual_seed(3)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, num_classes=3, patch_size=4, embed_dim=12, depth=2, num_heads=3
    )
    torch.save(model.state_dict(), "start.pth")
    encoder = [f"arguments={VIT}", "weights=start.pth", "drop_path=0.2", "gradient_checkpointing=true"]
    encoder += ["positions=fixed", "freeze_patch_projection=true"]
    settings = [f"--model.backbone.{setting}" for setting in encoder] + ["--model.optimizer.layer_decay=0.5"]
    assert main([*recipe("moco-builtin-amcl-vitxs4", *settings), "--model.queue_size=64", "--run_dir=run"]) == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["model"]["init_args"]["backbone"]["weights"] == str(tmp_path / "start.pth")
    (tmp_path / "start.pth").unlink()

    run = tmp_path / "run"
    assert main(["pretrain", "--resume", "run", "--trainer.max_epochs=2"]) == 0 and saved_step(run) == 4
    assert yaml.safe_load((run / "config.yaml").read_text())["model"] == config["model"]
    checkpoint = run / "checkpoints" / "last.ckpt"
    trained = load_encoder(run)
    assert type(trained.backbone.model).__module__.startswith("timm.") and trained.config.weights is None
    assert torch.equal(trained.backbone.model.patch_embed.proj.weight, model.patch_embed.proj.weight)
    assert not torch.equal(trained.backbone.model.norm.weight, model.norm.weight)
    assert main(["evaluate", "run", "--epochs=1"]) == 0
    assert main(["export", "run"]) == 0
    lines = capsys.readouterr().out.split("import safetensors.torch")[1]
    space: dict = {}
    exec("import safetensors.torch" + lines, space)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(space["model"].eval()(images), trained.backbone(images))
    assert checkpoint.is_file()


SOURCE = """
from torch import nn


class Net(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, stride=2)
        self.end = nn.Linear(width * 7 * 7, 24)

    def forward(self, images):
        return self.end(self.conv(images).relu().view(len(images), -1))
"""
OWN = ["--model.backbone.name=own_net.Net", "--model.backbone.width=64", "--model.backbone.arguments.width=12"]


def test_a_class_of_one_s_own(recipe, tmp_path, capsys, monkeypatch):
    (tmp_path / "own_net.py").write_text(SOURCE)
    assert main([*recipe("simclr-builtin-amcl", *OWN), "--run_dir=run"]) == 0
    monkeypatch.delitem(sys.modules, "own_net")
    capsys.readouterr()
    for command in (["evaluate", "run", "--epochs=1"], ["export", "run"], ["pretrain", "--resume", "run"]):
        assert main([*command, *(["--trainer.max_epochs=2"] if "--resume" in command else [])]) == 2
        line = error(capsys)
        assert "own_net.Net" in line and "--trust" in line and "own_net" not in sys.modules
    assert main(["pretrain", "--resume", "run", "--trainer.max_epochs=2", "--trust"]) == 0
    assert saved_step(tmp_path / "run") == 4
    assert main(["evaluate", "run", "--epochs=1", "--trust"]) == 0
    assert "24 features" in capsys.readouterr().out
    assert main(["export", "run", "--trust"]) == 0
    assert "model = pydoc.locate('own_net.Net')(width=12)" in capsys.readouterr().out

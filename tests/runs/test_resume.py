"""A real run (command line, DALI, JPEG) killed in mid-epoch and resumed ends as if it had not been."""

import signal

import pytest
import torch

from amcl_fast.cli import main
from tests.helpers.command_line import AMCL, CAN, image_folder, pretrain

pytestmark = pytest.mark.slow

_SETTINGS = """
    schedule: {warmup_epochs: 0.5}
trainer:
  {max_epochs: 3, accelerator: cpu, precision: bf16-mixed, gradient_clip_val: 1.0, log_every_n_steps: 1}
checkpoint: {every_n_epochs: 2, every_n_steps: 4}
seed_everything: 3
"""
_STEPS = 9  # of three epochs


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"), 12, 4)


def checkpoint(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def metrics(run):
    """step → loss."""
    header, *rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    loss = header.index("loss")
    return [(int(row[0]), row[loss]) for row in rows if row[loss]]


@pytest.mark.parametrize("method", [AMCL, CAN], ids=["simclr", "can"])
def test_killed_run_resumes_to_the_same_weights(method, images, tmp_path, monkeypatch, capsys, undrawn):
    """CAN draws masks and noise in every step. A process of its own has the run that is killed alone."""
    monkeypatch.chdir(tmp_path)
    settings = tmp_path / "settings.yaml"
    settings.write_text(method + _SETTINGS)
    start = ("--config", str(settings), "--data", str(images))

    assert main(["pretrain", *start, "--run_dir", "whole"]) == 0
    told = capsys.readouterr().out
    assert "raw pixels" in told and "checkpoints/last.ckpt" in told

    kill = ("--trainer.callbacks", "tests.helpers.killing.Kill", "--trainer.callbacks.step", "6")
    killed = pretrain(tmp_path, *start, "--run_dir", "killed", *kill)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    # Step 4 is inside the second epoch of three steps.
    assert checkpoint(tmp_path / "killed")["global_step"] == 4

    assert main(["pretrain", "--resume", "killed", "--trainer.callbacks", "null"]) == 0

    expected, found = (checkpoint(tmp_path / name) for name in ("whole", "killed"))
    assert found["global_step"] == expected["global_step"] == _STEPS
    for name, value in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], value), name
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    assert [step for step, _ in metrics(tmp_path / "whole")] == list(range(_STEPS))
    events = list((tmp_path / "killed" / "tensorboard").glob("events*"))
    assert len(events) == 2

"""A real run (command line, DALI, JPEG) killed in mid-epoch and resumed ends as if it had not been."""

import signal

import pytest
import torch

from tests.helpers import forks
from tests.helpers.command_line import AMCL, CAN, PRETRAIN, environment, image_folder, pretrain

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
def test_killed_run_resumes_to_the_same_weights(method, images, tmp_path):
    """CAN draws masks and noise in every step."""
    settings = tmp_path / "settings.yaml"
    settings.write_text(method + _SETTINGS)
    start = ("--config", settings, "--data", images)

    whole = forks.run([*PRETRAIN, *start, "--run_dir", "whole"], cwd=tmp_path, env=environment(tmp_path))
    assert whole.returncode == 0, whole.stderr
    assert "raw pixels" in whole.stdout and "checkpoints/last.ckpt" in whole.stdout

    kill = ("--trainer.callbacks", "tests.helpers.killing.Kill", "--trainer.callbacks.step", "6")
    killed = pretrain(tmp_path, *start, "--run_dir", "killed", *kill)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    # Step 4 is inside the second epoch of three steps.
    assert checkpoint(tmp_path / "killed")["global_step"] == 4

    resumed = pretrain(tmp_path, "--resume", "killed", "--trainer.callbacks", "null")
    assert resumed.returncode == 0, resumed.stderr

    expected, found = (checkpoint(tmp_path / name) for name in ("whole", "killed"))
    assert found["global_step"] == expected["global_step"] == _STEPS
    for name, value in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], value), name
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    assert [step for step, _ in metrics(tmp_path / "whole")] == list(range(_STEPS))
    events = list((tmp_path / "killed" / "tensorboard").glob("events*"))
    assert len(events) == 2

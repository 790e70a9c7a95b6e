"""A run whose terminal is closed: it saves, although nothing that it says can be written any more."""

import os
import pty
import signal
import sys

import pytest
import torch

from tests.helpers.command_line import NT_XENT, environment, image_folder

pytestmark = pytest.mark.slow

_SETTINGS = f"{NT_XENT}trainer: {{max_epochs: 50, accelerator: cpu, log_every_n_steps: 1}}"


def test_a_closed_terminal(tmp_path):
    (tmp_path / "settings.yaml").write_text(_SETTINGS)
    image_folder(tmp_path / "images", 8, 2)
    command = [sys.executable, "-m", "amcl_fast.cli", "pretrain", "--config", "settings.yaml", "--data", "images"]
    child, terminal = pty.fork()
    if not child:
        os.chdir(tmp_path)
        wait = ["--run_dir", "run", "--trainer.callbacks", "tests.helpers.hanging.Wait"]
        os.execve(sys.executable, [*command, *wait], environment(tmp_path))
    said = b""
    while b"hanging" not in said:
        said += os.read(terminal, 1000)
    os.close(terminal)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert (code, saved["global_step"]) == (128 + signal.SIGHUP, 2), said
    # The columns and two steps, the first with the baselines; kNN, which was not measured to its end, is made up for.
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") == 3

"""A run whose terminal is closed: it saves, although nothing that it says can be written any more."""

import os
import pty
import signal
import sys

import pytest
import torch
from command_line import NT_XENT, environment, image_folder

_SETTINGS = f"{NT_XENT}trainer: {{max_epochs: 50, accelerator: cpu, log_every_n_steps: 1}}"


@pytest.mark.parametrize("nohup", [False, True], ids=["", "nohup"])
def test_a_closed_terminal(tmp_path, nohup):
    (tmp_path / "settings.yaml").write_text(_SETTINGS)
    image_folder(tmp_path / "images", 8, 2)
    tell = ["--trainer.callbacks", "hanging.Wait"]
    if nohup:  # goes on to its end
        tell += ["--trainer.max_epochs", "2"]
    command = [sys.executable, "-m", "amcl_fast.cli", "pretrain", "--config", "settings.yaml", "--data", "images"]
    child, terminal = pty.fork()
    if not child:
        os.chdir(tmp_path)
        if nohup:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.execve(sys.executable, [*command, "--run_dir", "run", *tell], environment(tmp_path))
    said = b""
    while b"hanging" not in said:
        said += os.read(terminal, 1000)
    os.close(terminal)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert (code, saved["global_step"]) == ((0, 4) if nohup else (128 + signal.SIGHUP, 2)), said
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") == (8 if nohup else 4)  # kNN is made up for

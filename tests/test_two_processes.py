"""A run of two processes over gloo, through the command line: one report, one list, one lock, one checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from amcl_fast.report import read_run

_TESTS = Path(__file__).parent
_SETTINGS = """
data: {size: 16, batch_size: 8, num_threads: 1, device: cpu}
model:
  class_path: amcl_fast.methods.SimCLR
  init_args:
    backbone: {name: resnet18, stem: small, width: 8}
    projector: {heads: 2, hidden_dim: 16, dim: 8}
    criterion:
      class_path: amcl_fast.SimCLRLoss
      init_args:
        temperature:
          class_path: amcl_fast.AdaptiveTemperature
          init_args: {dim: 8, tau_min: 0.1, tau_max: 1.0, score: cosine}
        negatives: topk_softmax
        top_k: 4
        gather: true
        backend: reference
trainer: {max_epochs: 2, accelerator: cpu, devices: 2, strategy: ddp, log_every_n_steps: 1}
checkpoint: {every_n_epochs: 1}
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        for label in "ab":
            folder = root / part / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(noise.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    # Its header and its end are whole: found when it is decoded, by the one process whose part it is in.
    hidden = root / "train" / "a" / "3.png"
    content = bytearray(hidden.read_bytes())
    content[200:600] = bytes(400)
    hidden.write_bytes(content)
    return root


def pretrain(folder, *arguments):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(_TESTS.parent), str(_TESTS), os.environ.get("PYTHONPATH", "")]),
        "AMCL_FAST_CACHE": str(folder / "cache"),
    }
    command = [sys.executable, "-m", "amcl_fast.cli", "pretrain", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)


def test_two_processes_make_one_run(images, tmp_path):
    (tmp_path / "settings.yaml").write_text(_SETTINGS)
    full = ("--trainer.callbacks", "disk.FullAt", "--trainer.callbacks.epoch", "0")
    done = pretrain(tmp_path, "--config", "settings.yaml", "--data", images, "--run_dir", "run", *full)
    assert done.returncode == 0, done.stderr
    run = read_run(tmp_path / "run")
    assert run.facts["finished"] and run.facts["machine"]["processes"] == 2
    steps = run.series("loss")[0].tolist()
    assert steps == sorted(set(steps))  # logged by one process
    assert [len(series[0]) for series in run.heads("positive")] == [2, 2]
    assert [Path(file).name for file, _ in run.skipped] == ["3.png"]
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "could not be used: 1." in page and page.count("<img") == 8
    assert json.loads((tmp_path / "run" / "report" / "summary.json").read_text())["finished"] is True
    # The first save failed in the process that writes, and neither process waited for the other for ever.
    assert done.stderr.count("the checkpoint cannot be saved") >= 1 and "training goes on" in done.stderr
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == steps[-1] + 1

"""Small runs of the real command line: a folder of images, settings that take a second, a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from amcl_fast.runs.directory import VARIABLE

_ROOT = Path(__file__).resolve().parents[2]

_ENCODER = """
data: {size: 16, batch_size: 8, num_threads: 1, device: cpu}
model:
  class_path: amcl_fast.methods.SimCLR
  init_args:
    backbone: {name: resnet18, stem: small, width: 8}
    projector: {heads: 2, hidden_dim: 16, dim: 8}
    criterion:
      class_path: amcl_fast.SimCLRLoss
"""
NT_XENT = f"""{_ENCODER}
      init_args: {{temperature: 0.2, negatives: softmax, include_positive: true, backend: reference}}
"""
AMCL = f"""{_ENCODER}
      init_args:
        temperature:
          class_path: amcl_fast.AdaptiveTemperature
          init_args: {{dim: 8, tau_min: 0.1, tau_max: 1.0, score: cosine}}
        negatives: topk_softmax
        top_k: 4
"""
CAN = """
data: {size: 16, batch_size: 8, num_threads: 1, device: cpu}
model:
  class_path: amcl_fast.methods.CAN
  init_args:
    backbone:
      name: timm/vit_tiny_patch16_224
      arguments: {patch_size: 4, embed_dim: 12, depth: 1, num_heads: 3, global_pool: avg, fc_norm: false}
    decoder: {width: 8, depth: 1, heads: 2}
    projector: {heads: 1, hidden_dim: 16, dim: 8}
    criterion:
      class_path: amcl_fast.SimCLRLoss
      init_args: {temperature: 0.2, negatives: softmax, include_positive: true, backend: reference}
"""
"""Settings of a run, to which a test adds `trainer` and whatever else it needs."""
PRETRAIN = (sys.executable, "-m", "amcl_fast.cli", "pretrain")


def image_folder(root: Path, train: int, test: int, suffix: str = ".jpg") -> Path:
    """Fill `root` with noise, 20 pixels square, in classes a and b: so many training and test images of each."""
    noise = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for label in "ab":
            folder = root / part / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(0, 256, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}{suffix}")
    return root


def environment(folder: Path) -> dict[str, str]:
    """For a run of its own in `folder`, which finds the package and the modules of the tests."""
    return {
        # Less what a run in this process has told processes of its own.
        **{key: value for key, value in os.environ.items() if key != VARIABLE},
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]),
        "AMCL_FAST_CACHE": str(folder / "cache"),
    }


def saved_step(run: Path) -> int:
    """The step of a run's last checkpoint."""
    import torch  # not at the top: the processes that images are made for need none

    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]


def pretrain(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `amcl-fast pretrain` in `folder`; returns the finished process."""
    command = [*PRETRAIN, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=600)

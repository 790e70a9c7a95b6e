"""AMCL inside solo-learn: its SimCLR, encoder, optimiser and schedule, our loss instead of its simclr_loss_func.

Needs solo-learn 1.0.6, which is on GitHub alone (the 1.0.2 on PyPI needs a PyTorch Lightning of 2021). It asks for
lightning 2.1.2, but runs with 2.6; so it is installed without its pins:

    pip install --no-deps git+https://github.com/vturrisi/solo-learn
    pip install omegaconf
    python examples/with_solo_learn.py --steps 20

Against solo-learn's own method, the three statements marked `# changed` differ, and the import.
"""

import argparse
from typing import Any

import lightning as L
import torch
from omegaconf import OmegaConf
from solo.methods import SimCLR
from solo.methods.base import BaseMethod
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from amcl_fast import SimCLRLoss

SETTINGS = OmegaConf.create(
    {
        "method": "simclr",
        "backbone": {"name": "resnet18"},
        "data": {"dataset": "custom", "num_classes": 10, "num_large_crops": 2, "num_small_crops": 0},
        "method_kwargs": {"proj_hidden_dim": 512, "proj_output_dim": 128, "temperature": 0.2},
        "optimizer": {
            "name": "sgd",
            "batch_size": 32,
            "lr": 0.0075,
            "classifier_lr": 0.1,
            "weight_decay": 5e-4,
            "kwargs": {"momentum": 0.9},
        },
        "scheduler": {"name": "warmup_cosine", "interval": "epoch"},
        "max_epochs": 20,
    }
)


class AMCLSimCLR(SimCLR):
    """solo-learn's SimCLR with an adaptive temperature."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        # changed: a temperature of its own for every pair, from 0.1 to 1
        self.criterion = SimCLRLoss.recommended(128, gather=True)

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        # changed: the temperature learns, too
        return [*super().learnable_params, {"name": "temperature", "params": self.criterion.parameters()}]

    def training_step(self, batch: list[Any], batch_idx: int) -> Tensor:
        out = BaseMethod.training_step(self, batch, batch_idx)
        # changed, was: simclr_loss_func(torch.cat(out["z"]), indexes, temperature)
        loss = self.criterion(*out["z"])
        self.log("loss", loss)
        return loss + out["loss"]  # with that of the online classifier


class Noise(Dataset):
    """Batches as solo-learn's loaders give them: index, two views, label."""

    def __len__(self) -> int:
        return 128

    def __getitem__(self, index: int) -> tuple[int, list[Tensor], int]:
        image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(index))
        return index, [image, image.flip(-1)], index % 10


def train(steps: int) -> SimCLRLoss:
    """Train for a few steps; returns the loss module."""
    L.seed_everything(0)
    trainer = L.Trainer(max_steps=steps, max_epochs=-1, logger=False, enable_checkpointing=False, log_every_n_steps=1)
    method = AMCLSimCLR(SETTINGS)
    trainer.fit(method, DataLoader(Noise(), batch_size=32, shuffle=True, drop_last=True))
    print({name: round(value.item(), 3) for name, value in trainer.callback_metrics.items()})
    return method.criterion


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=8)
    train(parser.parse_args().steps)

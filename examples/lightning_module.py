"""AMCL inside a LightningModule of your own: SimCLR on torchvision's fake images, a few seconds on a CPU.

Against the same module with NT-Xent, the three statements marked `# changed` differ. The loss is a submodule, so φ is
among the module's parameters, in its checkpoints and on its device. Under DDP, `gather=True` makes the images of all
processes negatives.

    python examples/lightning_module.py --steps 20
"""

import argparse

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import FakeData
from torchvision.models import resnet18
from torchvision.transforms import v2

# changed
from amcl_fast import SimCLRLoss

AUGMENT = v2.Compose(
    [
        v2.ToImage(),
        v2.RandomResizedCrop(32, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True),
    ]
)


def two_views(image: object) -> tuple[Tensor, Tensor]:
    """Two augmentations of an image."""
    return AUGMENT(image), AUGMENT(image)


class SimCLR(L.LightningModule):
    """Encoder, projection head and loss."""

    def __init__(self) -> None:
        super().__init__()
        encoder = resnet18()
        encoder.fc = nn.Identity()
        self.model = nn.Sequential(encoder, nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
        # changed, was NT-Xent: a temperature of its own for every pair, from 0.1 to 1
        self.criterion = SimCLRLoss.recommended(128, gather=True)

    def training_step(self, batch: tuple[tuple[Tensor, Tensor], Tensor], batch_idx: int) -> Tensor:
        (first, second), _ = batch
        loss = self.criterion(self.model(first), self.model(second))
        # changed: mean, spread and minimum of the temperatures beside the loss
        self.log_dict({"loss": loss, **self.criterion.last_stats})
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0075, momentum=0.9)


def train(steps: int) -> SimCLRLoss:
    """Train for a few steps; returns the loss module."""
    L.seed_everything(0)
    images = FakeData(size=128, image_size=(3, 40, 40), transform=two_views)
    loader = DataLoader(images, batch_size=32, shuffle=True, drop_last=True)
    trainer = L.Trainer(max_steps=steps, max_epochs=-1, logger=False, enable_checkpointing=False, log_every_n_steps=1)
    module = SimCLR()
    trainer.fit(module, loader)
    print({name: round(value.item(), 3) for name, value in trainer.callback_metrics.items()})
    return module.criterion


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=8)
    train(parser.parse_args().steps)

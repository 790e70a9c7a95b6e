"""AMCL in the Trainer of Hugging Face's transformers (tested with 5.24): SimCLR on torchvision's fake images.

Against the same program with NT-Xent, the three statements marked `# changed` differ. The loss is a part of the module
that the Trainer gets, so φ is among its parameters, on its device and in its checkpoints; `gather=True` makes the
images of all processes negatives.

    pip install 'transformers[torch]'
    python examples/with_hugging_face_trainer.py --steps 20
"""

import argparse
import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.datasets import FakeData
from torchvision.models import resnet18
from torchvision.transforms import v2
from transformers import Trainer, TrainingArguments, set_seed

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


def collate(samples: list[tuple[tuple[Tensor, Tensor], int]]) -> dict[str, Tensor]:
    """The arguments of `SimCLR.forward` for a batch."""
    first, second = zip(*(views for views, _ in samples), strict=True)
    return {"first": torch.stack(first), "second": torch.stack(second)}


class SimCLR(nn.Module):
    """Encoder, projection head and loss."""

    def __init__(self) -> None:
        super().__init__()
        encoder = resnet18()
        encoder.fc = nn.Identity()
        self.model = nn.Sequential(encoder, nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
        # changed, was NT-Xent: a temperature of its own for every pair, from 0.1 to 1
        self.criterion = SimCLRLoss.recommended(128, gather=True)

    def forward(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        return {"loss": self.criterion(self.model(first), self.model(second))}


class SimCLRTrainer(Trainer):
    """The Trainer, which logs the temperatures too."""

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        # changed: mean, spread and minimum of the temperatures beside the loss
        stats = {name: value.item() for name, value in self.model.criterion.last_stats.items()}
        super().log({**logs, **stats}, *args, **kwargs)


def train(steps: int) -> SimCLRLoss:
    """Train for a few steps; returns the loss module."""
    set_seed(0)
    module = SimCLR()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=32,
            dataloader_drop_last=True,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
        )
        images = FakeData(size=128, image_size=(3, 40, 40), transform=two_views)
        SimCLRTrainer(module, arguments, data_collator=collate, train_dataset=images).train()
    return module.criterion


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=8)
    train(parser.parse_args().steps)

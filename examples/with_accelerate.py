"""AMCL in a loop of Hugging Face's accelerate (tested with 1.15): SimCLR on torchvision's fake images.

Against the same loop with NT-Xent, the three statements marked `# changed` differ. The loss is a part of the module
that accelerate prepares, so φ is on its device, in its checkpoints, and averaged over processes; `gather=True` makes
the images of all of them negatives.

    pip install accelerate
    accelerate launch examples/with_accelerate.py --steps 20
"""

import argparse
from itertools import chain, islice, repeat

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
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


class SimCLR(nn.Module):
    """Encoder, projection head and loss."""

    def __init__(self) -> None:
        super().__init__()
        encoder = resnet18()
        encoder.fc = nn.Identity()
        self.model = nn.Sequential(encoder, nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
        # changed, was NT-Xent: a temperature of its own for every pair, from 0.1 to 1
        self.criterion = SimCLRLoss.recommended(128, gather=True)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.criterion(self.model(first), self.model(second))


def train(steps: int) -> SimCLRLoss:
    """Train for a few steps and print every loss; returns the loss module."""
    accelerator = Accelerator()
    set_seed(0)
    module = SimCLR()
    criterion = module.criterion
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0075, momentum=0.9)
    images = FakeData(size=128, image_size=(3, 40, 40), transform=two_views)
    loader = DataLoader(images, batch_size=32, shuffle=True, drop_last=True)
    model, optimizer, loader = accelerator.prepare(module, optimizer, loader)
    for step, ((first, second), _) in enumerate(islice(chain.from_iterable(repeat(loader)), steps), 1):
        loss = model(first, second)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        # changed: the mean temperature beside the loss
        tau = criterion.last_stats["tau_positive_mean"]
        accelerator.print(f"step {step}  loss {loss:.4f}  τ of positives {tau:.3f}")
    return criterion


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=8)
    train(parser.parse_args().steps)

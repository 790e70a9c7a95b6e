"""AMCL in a plain PyTorch loop: SimCLR on torchvision's fake images, a few seconds on a CPU.

Against the same loop with NT-Xent, the three statements marked `# changed` differ.

    python examples/plain_pytorch.py --steps 20
"""

import argparse
from itertools import chain, islice, repeat

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


def train(steps: int) -> SimCLRLoss:
    """Train for a few steps and print every loss; returns the loss module."""
    torch.manual_seed(0)
    encoder = resnet18()
    encoder.fc = nn.Identity()
    model = nn.Sequential(encoder, nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
    # changed, was NT-Xent: a temperature of its own for every pair, from 0.1 to 1
    criterion = SimCLRLoss.recommended(128)
    # changed: the temperature learns, too
    optimizer = torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=0.0075, momentum=0.9)
    images = FakeData(size=128, image_size=(3, 40, 40), transform=two_views)
    loader = DataLoader(images, batch_size=32, shuffle=True, drop_last=True)
    for step, ((first, second), _) in enumerate(islice(chain.from_iterable(repeat(loader)), steps), 1):
        loss = criterion(model(first), model(second))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}  loss {loss.item():.4f}  τ of positives {criterion.last_stats['tau_positive_mean']:.3f}")
    return criterion


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=8)
    train(parser.parse_args().steps)

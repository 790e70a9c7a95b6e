"""AMCL inside lightly (tested with 1.6): its transform and its projection head, our loss instead of its NTXentLoss.

Against lightly's own SimCLR loop, the three statements marked `# changed` differ.

    pip install lightly
    python examples/with_lightly.py --steps 20
"""

import argparse
from itertools import chain, islice, repeat

import torch
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import FakeData
from torchvision.models import resnet18

# changed, was: from lightly.loss import NTXentLoss
from amcl_fast import SimCLRLoss


def train(steps: int) -> SimCLRLoss:
    """Train for a few steps and print every loss; returns the loss module."""
    torch.manual_seed(0)
    encoder = resnet18()
    encoder.fc = nn.Identity()
    model = nn.Sequential(encoder, SimCLRProjectionHead(512, 512, 128))
    # changed, was NTXentLoss(): a temperature of its own for every pair, from 0.1 to 1
    criterion = SimCLRLoss.recommended(128)
    # changed: the temperature learns, too
    optimizer = torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=0.0075, momentum=0.9)
    images = FakeData(size=128, image_size=(3, 40, 40), transform=SimCLRTransform(input_size=32, gaussian_blur=0.0))
    loader = DataLoader(images, batch_size=32, shuffle=True, drop_last=True)
    for step, (views, _) in enumerate(islice(chain.from_iterable(repeat(loader)), steps), 1):
        z1, z2 = (model(view) for view in views)
        loss = criterion(z1, z2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}  loss {loss.item():.4f}  τ of positives {criterion.last_stats['tau_positive_mean']:.3f}")
    return criterion


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=8)
    train(parser.parse_args().steps)

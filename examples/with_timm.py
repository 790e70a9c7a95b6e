"""AMCL on an encoder of timm (tested with 1.0), with timm's augmentations, optimiser and schedule.

Against the same loop with NT-Xent, the three statements marked `# changed` differ. Any model of timm will do:
`num_classes=0` leaves its classifier out, `num_features` is the width of what remains.

    pip install timm
    python examples/with_timm.py --steps 20
"""

import argparse
from itertools import chain, islice, repeat

import timm
import torch
from timm.data import create_transform
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import FakeData

# changed
from amcl_fast import SimCLRLoss

AUGMENT = create_transform(32, is_training=True, scale=(0.2, 1.0), color_jitter=0.4, auto_augment=None, re_prob=0.0)


def two_views(image: object) -> tuple[Tensor, Tensor]:
    """Two augmentations of an image."""
    return AUGMENT(image), AUGMENT(image)


def train(steps: int) -> SimCLRLoss:
    """Train for a few steps and print every loss; returns the loss module."""
    torch.manual_seed(0)
    encoder = timm.create_model("resnet18", pretrained=False, num_classes=0)
    width = encoder.num_features
    model = nn.Sequential(encoder, nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 128))
    # changed, was NT-Xent: a temperature of its own for every pair, from 0.1 to 1
    criterion = SimCLRLoss.recommended(128)
    # changed: the temperature learns, too; biases and its offset are not decayed
    optimizer = create_optimizer_v2(nn.ModuleList([model, criterion]), opt="adamw", lr=1e-3, weight_decay=0.05)
    schedule = CosineLRScheduler(optimizer, t_initial=max(steps, 8), t_in_epochs=False)
    images = FakeData(size=128, image_size=(3, 40, 40), transform=two_views)
    loader = DataLoader(images, batch_size=32, shuffle=True, drop_last=True)
    for step, ((first, second), _) in enumerate(islice(chain.from_iterable(repeat(loader)), steps), 1):
        loss = criterion(model(first), model(second))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step_update(step)
        print(f"step {step}  loss {loss.item():.4f}  τ of positives {criterion.last_stats['tau_positive_mean']:.3f}")
    return criterion


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=8)
    train(parser.parse_args().steps)

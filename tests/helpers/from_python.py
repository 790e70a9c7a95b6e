"""Objects that a run from Python may be given: encoders, datasets, loaders, callbacks; runs that are stopped."""

import os
import random
import signal

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from amcl_fast import SimCLRLoss, pretrain
from amcl_fast.methods import SimCLR
from amcl_fast.models import ProjectorConfig

CPU = {"accelerator": "cpu", "log_every_n_steps": 1}


def train(**given):
    """A run on the CPU, by settings.yaml unless other settings are given."""
    settings = {} if given.keys() & {"resume", "method", "model"} else {"config": "settings.yaml"}
    return pretrain(**{"trainer": CPU, **settings, **given})


def stop(step, **given):
    """Begin a training and stop it by a Ctrl-C in the step after so many; returns what it says."""
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(**given, callbacks=[Interrupt(step)])
    return str(stopped.value)


class Interrupt(L.Callback):
    """Ctrl-C after a step, or before the first one."""

    def __init__(self, step):
        self.step = step

    def on_train_start(self, trainer, module):
        if self.step < 0:
            os.kill(os.getpid(), signal.SIGINT)

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


class Net(nn.Module):
    def __init__(self, width=5):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, images):
        return self.norm(self.conv(images)).relu().mean((2, 3))


class Column(Dataset):
    """Shaped as a dataset of Hugging Face's: columns by name, rows as mappings."""

    column_names = ["img", "label"]  # noqa: RUF012

    def __init__(self, count=20, bad=()):
        self.count, self.bad = count, bad

    def __len__(self):
        return self.count

    def __getitem__(self, key):
        if key == "label":
            return [place % 2 for place in range(self.count)]
        if key in self.bad:
            raise OSError("truncated")
        pixels = np.random.default_rng(key).integers(0, 256, (18 + key % 3, 20, 3), dtype=np.uint8)
        return {"img": Image.fromarray(pixels), "label": key % 2}


class Views(Dataset):
    """Two views of noise an item, drawn from torch's generator."""

    def __len__(self):
        return 24

    def __getitem__(self, place):
        return [torch.randn(3, 8, 8), torch.randn(3, 8, 8)], place % 2


class Stateful:
    """A loader with a state, as torchdata's."""

    batch_size = 8

    def __init__(self):
        self.done = 0

    def __len__(self):
        return 3

    def __iter__(self):
        while True:
            generator = torch.Generator().manual_seed(self.done)
            self.done += 1
            yield list(torch.randn(2, 8, 3, 8, 8, generator=generator)), torch.zeros(8, dtype=torch.int64)
            if self.done % 3 == 0:
                return

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.done = state["done"]


class Own(L.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(Views(), batch_size=8, shuffle=True)


def crop(picture):
    """A view of one's own: 8 pixels, noise by all three generators."""
    pixels = torch.from_numpy(np.asarray(picture.resize((8, 8)), np.float32) / 255).permute(2, 0, 1)
    return pixels + 0.1 * (torch.randn(3, 8, 8) + np.random.rand() + random.random())  # noqa: NPY002


def simclr(backbone=None, **settings):
    torch.manual_seed(0)
    criterion = SimCLRLoss(0.2, negatives="softmax", include_positive=True, backend="reference")
    return SimCLR(criterion, backbone=backbone or Net(), projector=ProjectorConfig(1, 8, 8), **settings)


def weights(result):
    return result.method.state_dict()


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())

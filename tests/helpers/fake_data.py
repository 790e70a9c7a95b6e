"""A data module without DALI: what training needs of `ContrastiveDataModule`, on random images."""

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor

from amcl_fast.distributed import share

SIZE = 8
CLASSES = 2


class FakeLoader:
    """Batches of two views, each a function of (epoch, step) alone; resumable."""

    def __init__(self, steps: int, batch: int, nan_at: int | None = None) -> None:
        self.steps, self.batch, self.nan_at = steps, batch, nan_at
        self.epoch, self.step = 0, 0
        self.wait_seconds = 0.0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, Tensor], Tensor]]:
        if self.step == self.steps:
            self.epoch, self.step = self.epoch + 1, 0
        while self.step < self.steps:
            self.step += 1
            yield self._draw(self.epoch * self.steps + self.step - 1)

    def _draw(self, position: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        generator = torch.Generator().manual_seed(position)
        views = torch.randn(2, self.batch, 3, SIZE, SIZE, generator=generator)
        if position == self.nan_at:
            views[0, 0] = float("nan")
        return (views[0], views[1]), torch.arange(self.batch) % CLASSES

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.step = state["epoch"], state["step"]


class FakeDataModule(L.LightningDataModule):
    num_classes = CLASSES
    classes = ("a", "b")

    def __init__(self, steps: int = 4, batch: int = 8, nan_at: int | None = None) -> None:
        super().__init__()
        self.loader = FakeLoader(steps, batch, nan_at)
        self.num_train = steps * batch
        self.skipped: list[tuple[str, str]] = []

    def train_dataloader(self) -> FakeLoader:
        return self.loader

    size = SIZE

    def measured_images(self, bank: int | None = None, queries: int | None = None) -> tuple[int, int]:
        return 20, 10

    def features_loaders(
        self, bank: int | None = None, queries: int | None = None, *, shard: int = 0, num_shards: int = 1
    ) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
        def draw(seed: int, size: int) -> list[tuple[Tensor, Tensor]]:
            generator = torch.Generator().manual_seed(seed)
            labels = torch.arange(size) % CLASSES
            images = torch.randn(size, 3, SIZE, SIZE, generator=generator) + 3 * labels[:, None, None, None]
            first, end = share(size, shard, num_shards)
            return [(images[first:end], labels[first:end])]

        return draw(1, 20), draw(2, 10)

    def held_out_sample(self, classes: int, images: int) -> list[tuple[Tensor, Tensor]]:
        return self.features_loaders()[1]

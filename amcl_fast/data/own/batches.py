"""Batches of views that a user's own loader gives, as a data module that training, kNN and report can ask."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from amcl_fast.data.own.datasets import DatasetModule
from amcl_fast.data.own.items import Items, class_name

Batch = tuple[Sequence[Tensor], Tensor]


class BatchesModule(L.LightningDataModule):
    """Trains on what a loader gives, which must be (views, labels), as `Method` has it; measures on datasets.

    Args:
        loader: gives the batches of an epoch at every `iter`; or a LightningDataModule, whose `train_dataloader` does.
        first: its first batch; the report shows the pairs of this one.
        bank, queries: datasets to measure on; None: nothing is measured.
        settings: of `ContrastiveDataModule`, for what is measured; `size` and `batch_size` are the batches'.

    Attributes:
        sample_loader: the batches that a look at the pairs takes: the loader itself stays where it is.
    """

    def __init__(
        self,
        loader: Any,
        first: Batch,
        bank: Items | None = None,
        queries: Items | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self._loader = loader
        self._measured = None if bank is None else DatasetModule(bank, queries, **settings)
        self.size, self.mean, self.std = settings["size"], settings["mean"], settings["std"]
        self._per_process = settings["batch_size"]
        # Those of a recipe are of views, which are there already.
        settings |= {"views": 2, "augmentation": "acde", "limit": None, "shuffle_pool": None}
        self.view_sizes = [view.shape[2] for view in first[0]]
        self.target_views = self.view_sizes.count(self.size)
        self.skipped: list[tuple[str, str]] = []
        self.sample_loader = lambda: [first]
        images = getattr(getattr(loader, "dataset", None), "__len__", None)
        self.num_train: int | None = images() if images else None
        if self._measured is not None:
            # `OnlineKNN` asks for these where they are.
            self.measured_images = self._measured.measured_images
            self.features_loaders = self._measured.features_loaders

    @property
    def batch_size(self) -> int:
        """Images of all processes."""
        return self._per_process * (1 if self.trainer is None else self.trainer.world_size)

    @property
    def classes(self) -> list[str]:
        """Names of the classes of what is measured."""
        return [] if self._measured is None else self._measured.classes

    @property
    def num_classes(self) -> int:
        """How many."""
        return len(self.classes)

    @property
    def unmeasurable(self) -> str | None:
        """Why nothing is measured; None if something is."""
        if self._measured is None:
            return "batches come from a loader, and no datasets to measure on were given (evaluation=(train, held_out))"
        return self._measured.unmeasurable

    @unmeasurable.setter
    def unmeasurable(self, why: str) -> None:
        if self._measured is not None:
            self._measured.unmeasurable = why

    @property
    def overfit_batches(self) -> int | float:
        """Of the trainer; a loader's batches are its own."""
        return 0

    @overfit_batches.setter
    def overfit_batches(self, number: int | float) -> None:
        if number:
            raise ValueError(f"trainer.overfit_batches must be 0 with a loader of one's own, got {number}")

    def prepare_data(self) -> None:
        for module in self._modules_inside:
            module.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        if isinstance(self._loader, L.LightningDataModule):
            self._loader.trainer = self.trainer
            self._loader.setup(stage)  # type: ignore[arg-type]
        if self._measured is not None:
            self._measured.setup(stage)

    def teardown(self, stage: str | None = None) -> None:
        if isinstance(self._loader, L.LightningDataModule):
            self._loader.teardown(stage)  # type: ignore[arg-type]

    def train_dataloader(self) -> Any:
        batches = epoch_of(self._loader)
        # To Lightning a list is one of loaders.
        return DataLoader(batches, batch_size=None) if isinstance(batches, tuple | list) else batches  # type: ignore[arg-type]

    def held_out_sample(self, classes: int, images: int) -> Any:
        """As of `ContrastiveDataModule`."""
        if self._measured is None or self._measured.unmeasurable is not None:
            return None
        return self._measured.held_out_sample(classes, images)

    @property
    def _modules_inside(self) -> list[L.LightningDataModule]:
        return [part for part in (self._loader, self._measured) if isinstance(part, L.LightningDataModule)]


def epoch_of(loader: Any) -> Iterable[Any]:
    """The loader, or that of a data module."""
    return loader.train_dataloader() if isinstance(loader, L.LightningDataModule) else loader


def first_batch(loader: Any) -> Batch:
    """The first batch of a loader, or of a data module, which is set up for it.

    torch's random generator stays as it was, and so does the loader's state.

    Raises:
        ValueError: there is none, it comes only once, or it is not (views, labels).
    """
    if isinstance(loader, L.LightningDataModule):
        loader.prepare_data()
        loader.setup("fit")
    batches: Any = epoch_of(loader)
    if iter(batches) is batches:
        raise ValueError(
            f"data must give its batches anew in every epoch, got {class_name(batches)}, which gives them once"
        )
    state = batches.state_dict() if hasattr(batches, "state_dict") else None
    with torch.random.fork_rng(devices=[]):
        batch = next(iter(batches), None)
    if state is not None:
        batches.load_state_dict(state)
    if batch is None:
        raise ValueError(f"data must give batches, got none from {class_name(batches)}")
    wanted = "data must give batches (views, labels): a list of two float tensors (n, 3, H, W) or more, and labels (n,)"
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        of = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
        raise ValueError(f"{wanted}, got {class_name(batch)}{of}")
    views, labels = batch
    fits = isinstance(views, tuple | list) and len(views) > 1 and all(map(_is_view, views))
    if not fits or len({len(view) for view in views}) > 1:
        raise ValueError(f"{wanted}, got views {_told(views)}")
    if not isinstance(labels, Tensor) or labels.shape != (len(views[0]),):
        raise ValueError(f"{wanted}, got labels {_told(labels)} with views {_told(views)}")
    return views, labels


def _is_view(view: Any) -> bool:
    return isinstance(view, Tensor) and view.is_floating_point() and view.ndim == 4 and view.shape[1] == 3


def _told(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(_told(part) for part in value[:3])}]"
    return class_name(value)


def batches_of(
    loader: Any, first: Batch, bank: Items | None, queries: Items | None
) -> tuple[Callable[..., BatchesModule], dict[str, int]]:
    """What makes the data module of a loader, and the settings of data that follow from its first batch."""

    def make(**settings: Any) -> BatchesModule:
        return BatchesModule(loader, first, bank, queries, **settings)

    sizes = [max(view.shape[2:]) for view in first[0]]
    return make, {"size": max(sizes), "batch_size": len(first[0][0])}

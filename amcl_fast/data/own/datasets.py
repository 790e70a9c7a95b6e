"""Datasets of images in place of a folder: augmented, measured and gone on with as the images of a folder are."""

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from amcl_fast.data.graph import Output
from amcl_fast.data.loader.order import Order
from amcl_fast.data.module import ContrastiveDataModule
from amcl_fast.data.own.items import Items, class_name, place_of, reader_of
from amcl_fast.data.scan.images import Images
from amcl_fast.data.sources.folder import Sources
from amcl_fast.distributed import world

log = logging.getLogger(__name__)

Augment = Callable[[Any], Tensor]


class DatasetModule(ContrastiveDataModule):
    """A `ContrastiveDataModule` of datasets.

    Args:
        items: to train on.
        queries: to measure on; None: a tenth of each class of `items`.
        augment: of each view, a PIL image to a tensor (3, H, W), in place of `views` and `augmentation`.
        settings: of `ContrastiveDataModule`; `root` is a name for people.
    """

    def __init__(
        self, items: Items, queries: Items | None = None, augment: Sequence[Augment] = (), **settings: Any
    ) -> None:
        self._items, self._queries, self._augment = items, queries, augment
        if augment:
            settings["views"] = len(augment)
        super().__init__(**settings)
        self.sizes = view_sizes(items, augment) if augment else super().view_sizes

    @property
    def view_sizes(self) -> list[int]:
        return self.sizes

    def train_dataloader(self) -> Any:
        if not self._augment:
            return super().train_dataloader()
        rank, world_size = world()
        return AugmentedLoader(
            self._items,
            self._images()[0],
            self._augment,
            self.batch_size // world_size,
            seed=self.seed,
            share=rank,
            shares=world_size,
            workers=self.num_threads,
            repeated=self._repeated(self.batch_size),
        )

    def _find(self) -> list[Sources]:
        train = _images(self._items)
        why = None
        if self._items.labels is None:
            why = f"{self._items.name} does not tell its labels (as targets, or in a column label)"
        elif len(np.unique(train.labels[train.labels >= 0])) < 2:
            why = f"{self._items.name} has labels of fewer than two classes"
        held_out, notes = None, []
        if why is not None:
            train = Images(train.files, np.full(len(train.files), -1), [])
        elif self._queries is not None:
            held_out = _of_classes(_images(self._queries), train.classes)
            if others := int((held_out.labels < 0).sum()):
                notes = [f"images of evaluation that are of no class of data, and so are not measured: {others:,}"]
        return [Sources(train, held_out, None, why, notes)]

    def _kept(self) -> None:
        return None

    def _output(self, batch_size: int) -> Output:
        return replace(super()._output(batch_size), reader=reader_of(self._items, self._queries, limits=self.limits))


class AugmentedLoader:
    """Batches of views that a user's own functions make of a dataset's images, in processes of their own.

    What an image's functions draw from Python's, numpy's and torch's generators follows from seed, batch and place
    alone, so that a run goes on exactly.

    Attributes:
        wait_seconds: time spent so far waiting for batches.
    """

    def __init__(
        self,
        items: Items,
        images: Images,
        augment: Sequence[Augment],
        batch_size: int,
        *,
        seed: int,
        share: int,
        shares: int,
        workers: int,
        repeated: int | None = None,
    ) -> None:
        self._views = _Views(items, [place_of(location) for location in images.files], augment, (seed, share))
        self._images = len(images.files)
        self._order = Order(self._images, batch_size, seed=seed, share=share, shares=shares, repeated=repeated)
        if not self._order.batches:
            raise ValueError(
                f"training images must be at least {shares * batch_size} for {shares} process(es) with batches of "
                f"{batch_size}, got {len(images.files)}; lower data.batch_size"
            )
        self._workers = workers
        self._done = 0
        self.wait_seconds = 0.0

    def __len__(self) -> int:
        """Batches an epoch."""
        return self._order.batches

    def __iter__(self) -> Iterator[tuple[list[Tensor], Tensor]]:
        count = self._order.batches - self._done % self._order.batches
        wanted = [
            [(int(place), batch, number) for number, place in enumerate(self._order.places(batch))]
            for batch in range(self._done, self._done + count)
        ]
        loader = DataLoader(self._views, batch_sampler=wanted, num_workers=self._workers)  # type: ignore[arg-type]
        started = time.perf_counter()
        for views, labels in loader:
            self.wait_seconds += time.perf_counter() - started
            self._done += 1
            yield views, labels
            started = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """How many batches are done, and are an epoch."""
        return {"done": self._done, "batches": self._order.batches, "images": self._images}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after them; of other images than there were in the same epoch, with a warning."""
        self._done = state["done"]
        if state.get("images", self._images) != self._images:
            log.warning("the images are not those of the checkpoint: their order is another")
            epochs, done = divmod(state["done"], state["batches"])
            self._done = epochs * self._order.batches + min(done, self._order.batches)


class _Views(Dataset[tuple[list[Tensor], int]]):
    def __init__(self, items: Items, places: list[int], augment: Sequence[Augment], seed: tuple[int, int]) -> None:
        self._items, self._places, self._augment, self._seed = items, places, augment, seed

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[list[Tensor], int]:
        place, batch, number = key
        seed = int(np.random.SeedSequence((*self._seed, batch, number)).generate_state(1)[0])
        # Of a process of the loader, which does nothing else.
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        picture = self._items.picture(self._places[place]).convert("RGB")
        return [augment(picture) for augment in self._augment], self._items.label(self._places[place])


def view_sizes(items: Items, augment: Sequence[Augment]) -> list[int]:
    """Side of the views that functions make of a dataset's first image, one for each.

    Raises:
        ValueError: a function gives no square float tensor (3, S, S).
    """
    picture = items.picture(0).convert("RGB")
    sizes = []
    with torch.random.fork_rng(devices=[]):
        for function in augment:
            try:
                view = function(picture)
            except Exception as error:  # of any code of others
                said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                raise ValueError(f"augment must take PIL images in RGB, got an error of it: {said}") from error
            fits = isinstance(view, Tensor) and view.is_floating_point() and view.ndim == 3
            if not fits or view.shape[0] != 3 or view.shape[1] != view.shape[2]:
                got = f"{view.dtype} of shape {tuple(view.shape)}" if isinstance(view, Tensor) else class_name(view)
                raise ValueError(f"augment must give float tensors (3, S, S), got {got}")
            sizes.append(view.shape[1])
    return sizes


def _images(items: Items) -> Images:
    labels = np.full(len(items), -1) if items.labels is None else items.labels
    return Images([items.location(place) for place in range(len(items))], labels, items.classes)


def _of_classes(images: Images, classes: list[str]) -> Images:
    """Images with the labels of other classes, by name where both have names, else by number; -1 of what they lack."""
    own = images.classes
    named = not any(names == [str(number) for number in range(len(names))] for names in (own, classes))
    numbers = {name: number for number, name in enumerate(classes)} if named else {}
    labels = [numbers.get(name, -1) if named else number for number, name in enumerate(own)]
    table = np.array([*(label if label < len(classes) else -1 for label in labels), -1])
    return Images(images.files, table[images.labels], classes)

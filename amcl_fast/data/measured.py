"""Loaders of a data module for what is measured while and after it trains: kNN, linear probes, pictures of features."""

from functools import cached_property

import numpy as np

from amcl_fast.data.augment import Augmentation
from amcl_fast.data.choice import sampled, spread
from amcl_fast.data.equality import refuse_uneven
from amcl_fast.data.graph import Output
from amcl_fast.data.loader.contrastive import ContrastiveLoader, SingleViewLoader
from amcl_fast.data.loader.evaluation import EvaluationLoader
from amcl_fast.data.loader.idle import Idle
from amcl_fast.data.locations import shown
from amcl_fast.data.scan.headers import NONE_MEASURED, NoImageLeftError
from amcl_fast.data.scan.images import Images
from amcl_fast.distributed import share


class MeasuredImages:
    """The part of a data module that gives its images without augmentation, or a linear probe's."""

    batch_size: int
    seed: int
    skipped: list[tuple[str, str]]
    _bad: set[str]  # locations of those found during the run
    _listed: set[tuple[str, str]]  # what `skipped` holds

    def _to_measure(self) -> tuple[Images, Images]:
        """Images to learn from, and those that are asked."""
        raise NotImplementedError

    def _output(self, batch_size: int) -> Output:
        raise NotImplementedError

    def features_loaders(
        self, bank: int | None = None, queries: int | None = None, *, shard: int = 0, num_shards: int = 1
    ) -> tuple[EvaluationLoader, EvaluationLoader]:
        """(bank, query): the training images with a label, and the held-out ones, without augmentation.

        Both are of `evaluation`, where the data module has one, here and below. There are none where `unmeasurable`
        says why.

        Args:
            bank: images at the most. Of more a sample is taken, of every class the same number as nearly as possible,
                always the same images, but for files that have turned out to be bad; None: all.
            queries: the same of the held-out images.
            shard: index of this process, which gets its part of both: those of all processes in order are the whole.
            num_shards: number of processes. Of several one may get no image.

        Raises:
            NoImageLeftError: one process gets all, and of one of the two every file has turned out to be bad.
        """
        of_bank, of_queries = (
            self._features_loader(sampled(images, most), shard, num_shards)
            for images, most in zip(self._to_measure(), (bank, queries), strict=True)
        )
        return of_bank, of_queries

    def measured_images(self, bank: int | None = None, queries: int | None = None) -> tuple[int, int]:
        """How many images `features_loaders` gives to all processes together, bad ones included."""
        counts = [int((images.labels >= 0).sum()) for images in self._to_measure()]
        most = [
            count if given is None else min(count, given) for count, given in zip(counts, (bank, queries), strict=True)
        ]
        return most[0], most[1]

    def linear_probe_loader(self, shard: int = 0, num_shards: int = 1, fraction: float = 1.0) -> SingleViewLoader:
        """The training images with a label, by random crop and flip alone, anew every epoch: a linear probe's.

        Batches hold `batch_size` images, or all there are, each process its part of every batch.

        Args:
            shard: index of this process.
            num_shards: number of processes; the augmentations follow from it.
            fraction: share of the images, always the same, as many of each class as nearly as possible.

        Raises:
            UnevenBatchError: the batch does not divide by the number of processes.
            ValueError: there are fewer images than processes, or the fraction leaves none of a class.
        """
        refuse_uneven(self.batch_size, num_shards)
        images = self._labelled(_part(self._to_measure()[0], fraction))
        output = self._output(max(1, min(self.batch_size, len(images.files)) // num_shards))
        crop_and_flip = [Augmentation.from_letters("ae")]
        place = {"shard": shard, "num_shards": num_shards}
        return SingleViewLoader(
            ContrastiveLoader(images, crop_and_flip, output, seed=self.seed, on_bad_file=self._note_bad_file, **place)
        )

    def held_out_sample(self, classes: int, images: int) -> EvaluationLoader | None:
        """Held-out images of at most `classes` classes and at most `images` of each, without augmentation.

        The classes are spread evenly over all of them; the choice is always the same, but for files that have turned
        out to be bad. None if no other is held out.
        """
        query = self._labelled(self._to_measure()[1])
        if not query.files:
            return None
        return self._features_loader(spread(query, classes, images))

    def _features_loader(self, images: Images, shard: int = 0, num_shards: int = 1) -> EvaluationLoader:
        first, end = share(len(images.files), shard, num_shards)
        images = self._labelled(images.subset(np.arange(first, end)))
        if not images.files and num_shards == 1:
            raise NoImageLeftError(NONE_MEASURED)
        output = self._output(max(1, self.batch_size // num_shards))
        return EvaluationLoader(
            images, output, on_bad_file=self._note_bad_file, may_be_none=num_shards > 1, idle=self._idle
        )

    @cached_property
    def _idle(self) -> Idle:
        return Idle()

    def _labelled(self, images: Images) -> Images:
        chosen = images.labels >= 0
        chosen[images.files.places(self._bad)] = False
        return images if chosen.all() else images.subset(chosen)

    def _note_bad_file(self, location: str, reason: str) -> None:
        if len(self._listed) != len(self.skipped):  # other processes' have joined
            self._listed = set(self.skipped)
        if (entry := (shown(location), reason)) not in self._listed:
            self._listed.add(entry)
            self.skipped.append(entry)
        self._bad.add(location)


def _part(images: Images, fraction: float) -> Images:
    """A share of those with a label.

    Raises:
        ValueError: it has none of a class.
    """
    if fraction == 1:
        return images
    labels = images.labels[images.labels >= 0]
    most, classes = round(fraction * len(labels)), len(np.unique(labels))
    if most < classes:
        raise ValueError(
            f"label_fraction must leave an image of each of {classes:,} classes, got {fraction:g} of {len(labels):,} "
            "images"
        )
    return sampled(images, most)

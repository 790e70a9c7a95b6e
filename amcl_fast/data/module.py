"""The data of a run as a LightningDataModule: from a folder or a name to loaders."""

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only

from amcl_fast.data.augment import Augmentation
from amcl_fast.data.choice import divided, limited, to_measure, unmeasurable
from amcl_fast.data.equality import found_by_all, refuse_unequal, refuse_uneven, stale
from amcl_fast.data.graph import Device, Output
from amcl_fast.data.loader.contrastive import ContrastiveLoader
from amcl_fast.data.locations import member
from amcl_fast.data.measured import MeasuredImages
from amcl_fast.data.memory import Memory, most_memory
from amcl_fast.data.pixels import dtype_of_views
from amcl_fast.data.scan.images import Images
from amcl_fast.data.scan.largest import Largest
from amcl_fast.data.scan.limits import DEFAULT_LIMITS, Limits
from amcl_fast.data.settings import check_settings
from amcl_fast.data.sources.find import find_images
from amcl_fast.data.sources.folder import Sources
from amcl_fast.data.sources.list_cache import keep, kept
from amcl_fast.data.sources.named import data_path
from amcl_fast.data.taken import taken
from amcl_fast.data.views import ViewGroup, side, training_views
from amcl_fast.distributed import together, world
from amcl_fast.fellows import patient

log = logging.getLogger(__name__)


class ContrastiveDataModule(MeasuredImages, lightning.LightningDataModule):
    """Images for contrastive pre-training, and the same without augmentation for its evaluation.

    Attributes:
        views: one entry a view, as of `amcl_fast.data.views.each_view`.
        overfit_batches: batches, or share of them up to 1.0, of which every epoch consists, the same ones; 0: all,
            reshuffled.

    Attributes (after `setup`):
        classes: names of the classes.
        num_classes: how many; with `evaluation` both are of that.
        num_train: training images, those without a label included.
        channels: 3; every image is converted to RGB.
        taken: which images are trained on and which are held out, in words.
        unmeasurable: why no classifier on features can be measured (kNN, linear probe); None if it can.
        skipped: (path, reason) of every file and folder left out; it grows when a file turns out to be bad
            during the run.
    """

    channels = 3

    def __init__(
        self,
        root: str = "builtin",
        size: int = 32,
        batch_size: int = 256,
        views: list[ViewGroup] | list[Augmentation] | int = 2,  # of several errors the first is told
        augmentation: str = "acde",
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        seed: int = 0,
        num_threads: int = 2,
        prefetch: int = 2,
        device: Literal["auto", "cpu", "gpu"] = "auto",
        limit: int | None = None,
        crop_pct: float = 1.0,
        reduce_above: int | None = 2_000_000,
        held_out: str | None = None,
        dtype: Literal["auto", "float32", "float16"] = "auto",
        shuffle_pool: int | None = None,
        evaluation: str | None = None,
        max_image_bytes: int = DEFAULT_LIMITS.bytes,
        max_image_pixels: int = DEFAULT_LIMITS.pixels,
    ) -> None:
        """Describe the data; nothing is read before `prepare_data` and `setup`.

        Args:
            root: a folder with train/CLASS/IMAGE and test/ or val/ beside it, or with CLASS/IMAGE directly
                (then a tenth of every class, always the same, is held out); images in unlabeled/ join the
                training. Images without classes are trained on too (docs/data.md has all layouts). Or
                "builtin" (generated), or "cifar10", "cifar100", "stl10" (downloaded). Or a text or CSV file of
                paths with or without labels; or tars of samples as WebDataset has them: a folder of them, a pattern
                (train-{000000..001023}.tar) or a file that lists them.
            size: side of the square images that come out, in pixels: of all but the views that `views` makes smaller;
                at most 16384.
            batch_size: images per optimiser step over all processes.
            views: number of views; or groups of them, each with its `count`, a `size` up to that above, which one at
                least must have, and the settings of an Augmentation (docs/views.md); or one Augmentation each.
            augmentation: letters of the augmentation of every view, where `views` is a number: a crop, b
                blur, c greyscale, d colour jitter, e flip, s solarisation.
            mean: per channel, of pixels in [0, 1].
            std: per channel, of pixels in [0, 1]; above 0.
            seed: of the order and of the augmentations; not of the held-out part and of `limit`, so that runs
                with several seeds compare.
            num_threads: DALI's worker threads, per process, at most 1024.
            prefetch: batches computed ahead, at most 1024. Each takes 12 bytes a pixel of all its views (batch * the
                sum of the views' size * size), half of that in float16, and its decoded images, 3 bytes a pixel.
            device: where DALI decodes and augments; "auto" takes the GPU if there is one.
            limit: train on this many images only, the same number of each class as nearly as possible.
            crop_pct: share of the shorter side, at least 0.01, that evaluations see, the images' centre; 0.875 is
                ImageNet's custom (256 pixels, of which 224).
            reduce_above: images of more pixels than this are decoded at a half, a quarter or an eighth of their
                size, as far as the smallest crop leaves room for, so that a batch of photographs fits into
                memory; null: never.
            held_out: what to measure on instead of a part of `root`: a path or a name as `root` may be.
            dtype: of the views; "auto" is float16 where DALI runs on the GPU and the trainer's precision is of 16
                bits, or else float32. What is evaluated is always float32.
            shuffle_pool: of shards on a disk or a network folder that reads one piece after the other fastest, how
                many images a process mixes at a time (docs/data.md); null: all.
            evaluation: a data set to measure on, with classes of its own, where `root` has none or others: a path or a
                name as `root` may be. kNN and probes learn from its training part, and what it holds out is asked. All
                of `root` is trained on, but for a part that is held out there by its name.
            max_image_bytes: of an encoded image: larger ones are left out and listed (docs/photographs.md).
            max_image_pixels: of an image: larger ones are left out and listed, and JPEGs of as much work by scans.

        Raises:
            ValueError: a setting out of range, or both `held_out` and `evaluation`.
        """
        super().__init__()
        self.root, self.size, self.batch_size, self.seed = root, size, batch_size, seed
        self.mean, self.std = mean, std
        self.num_threads, self.prefetch, self.device, self.limit = num_threads, prefetch, device, limit
        self.crop_pct, self.reduce_above = crop_pct, reduce_above
        self.held_out, self.evaluation, self.dtype, self.shuffle_pool = held_out, evaluation, dtype, shuffle_pool
        self.max_image_bytes, self.max_image_pixels = max_image_bytes, max_image_pixels
        check_settings(self)
        self.views = training_views(views, size, augmentation)
        self.overfit_batches: int | float = 0
        self.skipped: list[tuple[str, str]] = []
        self.classes: list[str] = []
        self.taken = ""
        self.unmeasurable: str | None = None
        self._bad: set[str] = set()  # locations of those found during the run
        self._listed: set[tuple[str, str]] = set()
        self._found: list[Sources] | None = None  # of `root`, and of `evaluation`
        self._failed: Exception | None = None  # what has come of looking for them
        self._list: str | None = None  # the name under which the images are kept
        self._is_kept = False  # whether they are those that another process has kept
        self._train: Images | None = None
        self._query: Images | None = None
        self._largest = Largest([], [])
        self._bank: Images | None = None  # of `evaluation`; None: those that are trained on

    @property
    def view_sizes(self) -> list[int]:
        """Side of each view, in pixels."""
        return [side(view, self.size) for view in self.views]

    @property
    def target_views(self) -> int:
        """Number of the largest views, to which the others are drawn."""
        return self.view_sizes.count(self.size)

    @property
    def limits(self) -> Limits:
        """Above which an image is left out."""
        return Limits(self.max_image_bytes, self.max_image_pixels)

    @property
    def num_classes(self) -> int:
        """Number of classes; known after `setup`."""
        return len(self.classes)

    @property
    def num_train(self) -> int:
        """Number of training images; known after `setup`."""
        return len(self._images()[0].files)

    def prepare_data(self) -> None:
        """Generate or download the data set and check its files, once a machine; all is kept in the cache.

        The other processes of the machine map the list of images in `setup`. Of several processes of a trainer, where
        Lightning calls this in some, `setup` raises what this would raise.

        Raises:
            ValueError: the folder holds no usable images.
            ConnectionError: a download failed.
        """
        if self._found is not None or self._train is not None:
            return
        self._failed = None
        try:
            self._found = self._find()
        except Exception as error:
            if self.trainer is None or world()[1] == 1:
                raise
            self._failed = error

    def setup(self, stage: str | None = None) -> None:
        """List the images of the training and of the held-out part.

        All processes of a trainer call this, as Lightning does. They wait for each other however long it takes.

        Raises:
            ValueError: the folder holds no usable images.
            ElsewhereError: another process of the trainer has failed; that one raises why.
        """
        if self.trainer is None:
            self._set_up()
            return
        with patient() as group, together(group):
            if self._failed is not None:
                raise self._failed
            self._set_up()

    def _set_up(self) -> None:
        if self._train is not None:
            return
        every = self._found
        if every is None and world()[1] > 1:
            # Another process of the machine has prepared the data.
            every = self._kept()
            self._is_kept = every is not None
        every = every or self._find()
        self._list = "\0".join(str(found.name) for found in every)
        parts = (part for found in every for part in (found.train, found.held_out, found.unlabelled))
        # What is measured on may be what is trained on.
        self.skipped.extend(dict.fromkeys(entry for part in parts if part for entry in part.skipped))
        self._largest = Largest.joined(found.largest for found in every)
        found, *own = every
        unlabelled = found.unlabelled
        if own:
            bank, query = to_measure(own[0], str(self.evaluation))
            train, self._bank = found.train, bank
        else:
            train, query = divided(found.train, found.held_out)
        if unlabelled is not None:
            labels = np.concatenate([train.labels, unlabelled.labels])
            train = Images(train.files + unlabelled.files, labels, train.classes)
        there = len(train.files)
        if self.limit is not None and self.limit < there:
            train = limited(train, self.limit)
        if self.shuffle_pool is not None and train.files and member(train.files[0]) is None:
            raise ValueError(
                f"data.shuffle_pool must be null where images are files, for it is of shards, got {self.shuffle_pool}"
            )
        self._found, self._train, self._query = None, train, query
        self.classes = query.classes
        if own:
            all_images = Images(train.files, train.labels, [])
            measured = taken(bank, query, len(bank.files), own[0])
            self.taken = f"{taken(all_images, query, there, found)}; measured on {measured}"
        else:
            self.taken = taken(train, query, there, found)
        self.unmeasurable = None if own else found.no_labels or unmeasurable(train, query)
        if not world()[0]:
            for note in (note for found in every for note in found.notes):
                log.warning("%s", note)

    def train_dataloader(self) -> ContrastiveLoader:
        """Augmented views of this process's part of the training images.

        Raises:
            ValueError: the batch does not divide by the number of processes, or is larger than the data set.
            UnequalImagesError: the processes have found different images. All of them must call this.
        """
        rank, world_size = world()
        refuse_uneven(self.batch_size, world_size)
        self.check_equal()
        return ContrastiveLoader(
            self._images()[0],
            self.views,
            self._in_dtype(self._output(self.batch_size // world_size)),
            seed=self.seed,
            shard=rank,
            num_shards=world_size,
            pool=self.shuffle_pool,
            repeated=self._repeated(self.batch_size),
            on_bad_file=self._note_bad_file,
        )

    def most_memory(self, batch_size: int) -> Memory:
        """What a process with batches of `batch_size` takes for images at the most; known after `setup`."""
        return most_memory(self._output(batch_size), self.view_sizes, self._largest)

    def _repeated(self, batch_size: int) -> int | None:
        """How many batches make every epoch, None for all of them."""
        share = self.overfit_batches
        if not share:
            return None
        return share if isinstance(share, int) else max(1, int(share * (self.num_train // batch_size)))

    def check_equal(self) -> None:
        """See that all processes have the same images: their batches would differ in number, and they wait for ever.

        Raises:
            UnequalImagesError: they have not. All of them must call this.
            ElsewhereError: another process, whose images were of an earlier run, cannot find them; that one raises why.
        """
        rank, world_size = world()
        if world_size == 1:
            return
        found = found_by_all(self._every_part(), self._list, self._is_kept, world_size)
        of_earlier = stale(found)
        if any(of_earlier):
            with patient() as group, together(group):
                if of_earlier[rank]:
                    self._look_again()
            found = found_by_all(self._every_part(), self._list, self._is_kept, world_size)
        refuse_unequal(f"{self.root} and {self.evaluation}" if self.evaluation else self.root, found)

    def _look_again(self) -> None:
        """Find the images, instead of those that another process has kept."""
        self._found = self._find()
        self._train = self._query = self._bank = None
        self._is_kept = False
        self.skipped.clear()
        self._set_up()

    def _images(self) -> tuple[Images, Images]:
        if self._train is None or self._query is None:
            raise RuntimeError("call setup() first")
        return self._train, self._query

    def _to_measure(self) -> tuple[Images, Images]:
        train, query = self._images()
        return train if self._bank is None else self._bank, query

    def _every_part(self) -> list[Images]:
        return [*self._images(), *([] if self._bank is None else [self._bank])]

    def _kept(self) -> list[Sources] | None:
        """The lists that another process of this machine has kept; None where one is missing."""
        lists = [kept(_data_set(places, self.limits)) for places in self._places()]
        whole = [found for found in lists if found is not None]
        return whole if len(whole) == len(lists) else None

    def _find(self) -> list[Sources]:
        """Look for the images, which is told if it takes long, and keep the lists for the other processes."""
        first = not rank_zero_only.rank  # type: ignore[attr-defined]
        limits = self.limits
        return [
            keep(_data_set(places, limits), find_images(*places, tell=first, limits=limits))
            for places in self._places()
        ]

    def _places(self) -> list[tuple[Path, Path | None]]:
        """Where the images lie, and those to measure on, if they lie elsewhere; the same of `evaluation`."""
        places = [(data_path(self.root), data_path(self.held_out) if self.held_out else None)]
        return [*places, (data_path(self.evaluation), None)] if self.evaluation else places

    def _in_dtype(self, output: Output) -> Output:
        """The same with the dtype of the views."""
        precision = None if self.trainer is None else self.trainer.precision
        on_gpu = output.device == "gpu"
        dtype = dtype_of_views(self.dtype, precision, on_gpu=on_gpu, mean=self.mean, std=self.std)
        return replace(output, dtype=dtype)

    def _output(self, batch_size: int) -> Output:
        on_gpu = torch.cuda.is_available() if self.device == "auto" else self.device == "gpu"
        if on_gpu and not torch.cuda.is_available():
            raise ValueError("data.device must be cpu or auto where torch finds no CUDA device, got gpu")
        device: Device = "gpu" if on_gpu else "cpu"
        return Output(
            size=self.size,
            batch_size=batch_size,
            device=device,
            # Lightning has made this process's GPU the current one.
            device_id=torch.cuda.current_device() if on_gpu else None,
            num_threads=self.num_threads,
            prefetch=self.prefetch,
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop_pct,
            reduce_above=self.reduce_above,
            limits=self.limits,
        )


def _data_set(places: tuple[Path, Path | None], limits: Limits) -> str:
    """What tells images from those of other settings."""
    return "\0".join(os.path.abspath(path) for path in places if path is not None) + limits.key

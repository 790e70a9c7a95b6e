"""Augmented views for training: epochs that are reshuffled, resumable, not ended by a bad file."""

import itertools
import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from amcl_fast.data.augment import Augmentation
from amcl_fast.data.decoding.trial import of_decoding
from amcl_fast.data.graph import Output, training_pipeline, with_seeds, without_seeds
from amcl_fast.data.loader.bad_files import BadFileHandler, StandIns, judge, tell
from amcl_fast.data.loader.batches import labels_at, loosely
from amcl_fast.data.loader.checked import Checked
from amcl_fast.data.loader.order import Order
from amcl_fast.data.loader.position import VERSION, pack, unpack
from amcl_fast.data.reading.reader import Encoded
from amcl_fast.data.scan.headers import NoImageLeftError
from amcl_fast.data.scan.images import Images
from amcl_fast.data.views import each_view, shorter_side
from amcl_fast.left_out import DURING

log = logging.getLogger(__name__)

_UNSOLARISED = ", solarise=0.0, solarise_threshold=128"

# Files that are read at once where many in a row are bad.
_TOGETHER = 32
# Of a state's files that could not be decoded, those that are tried again: five seconds of photographs.
_RETRIED = 1000


class ContrastiveLoader:
    """Endless epochs of augmented views, a fixed number of full batches each.

    Yields `(views, labels)`: a tuple of (n, 3, size, size) tensors of `output.dtype` in channels_last memory format,
    one a view, each of its own size, and (n,) int64 labels. An image is decoded once for all of its views. The tensors
    share DALI's memory: DALI gives a buffer away with its outputs and never writes to it again, so a batch stays valid
    for as long as it is held.

    Every epoch reshuffles the files, in the same way in every shard, and drops the last partial batch. Each
    `iter()` yields `len(self)` batches; one that is abandoned half way is followed by batches that continue
    where it stopped. The same seed, files, batch size and number of shards give the same bits, whatever the
    number of threads.

    Files are read and checked by a process of its own before DALI sees them. One that turns out to be bad in the
    middle of a run is replaced for the rest of the run by the next good one in the list. The order, the number of
    batches and the other shards are not affected.

    Attributes:
        wait_seconds: time spent so far waiting for DALI, in total.
    """

    def __init__(
        self,
        images: Images,
        views: Sequence[Augmentation],
        output: Output,
        *,
        seed: int = 0,
        shard: int = 0,
        num_shards: int = 1,
        pool: int | None = None,
        repeated: int | None = None,
        on_bad_file: BadFileHandler | None = None,
    ) -> None:
        """Make a loader; DALI starts with the first batch.

        Args:
            images: files and labels, the same in every shard.
            views: one augmentation a view, or groups of views, in their order.
            output: size of the largest views, batch size of this shard, device.
            seed: base seed, the same in every shard.
            shard: index of this process.
            num_shards: number of processes.
            pool: images of this process that are mixed at a time (`Order`); None: all.
            repeated: batches of which every epoch consists, augmented anew; None: all.
            on_bad_file: called with location and reason when a file turns out to be bad during the run.

        Raises:
            ValueError: no views, none of the output's size or a larger one, a shard out of range, or too few images for
                one batch in each shard.
        """
        if not views:
            raise ValueError("views must have at least one, got none")
        if not 0 <= shard < num_shards:
            raise ValueError(f"shard must be at least 0 and below num_shards={num_shards}, got {shard}")
        self._order = Order(
            len(images.files),
            output.batch_size,
            seed=seed,
            share=shard,
            shares=num_shards,
            pool=pool,
            repeated=repeated,
        )
        self._pool = pool
        self._batches = self._order.batches
        if not self._batches:
            raise ValueError(
                f"training images must be at least {num_shards * output.batch_size} for {num_shards} process(es) with "
                f"batches of {output.batch_size}, got {len(images.files)}; lower data.batch_size"
            )
        self._images = images
        # It is part of every state, and computed of millions of names.
        self._fingerprint = images.fingerprint
        self._stand_ins = StandIns(len(images.files))
        self._views = each_view(views, output.size)
        self._output = output
        self._seed, self._shard, self._num_shards = seed, shard, num_shards
        self._on_bad_file = on_bad_file
        self._pipeline: Any = None
        self._checkpoint: bytes | None = None
        # The smallest crop is not enlarged for it.
        self._checked = Checked(output, shorter_side(self._views, output.size))
        self._done = 0  # batches in all
        self._begun = 0  # those that were done by another number of shards
        self._yielded = 0  # within the present iteration
        self._asked = self._fed = self._expected = 0  # batches, those done included
        self._asked_sources: deque[list[int]] = deque()
        self._sources: deque[list[int]] = deque()  # of the batches in DALI: the files' places in the list
        self._latest: list[int] = []
        self._resuming = False
        self.wait_seconds = 0.0

    def __len__(self) -> int:
        """Full batches an epoch."""
        return self._batches

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        if not self._resuming:
            self._yielded = 0
        self._resuming = False
        while self._yielded < self._batches:
            started = time.perf_counter()
            outputs, sources = self._advance()
            self._yielded += 1
            views = [torch.from_dlpack(tensors.as_tensor()) for tensors in outputs]
            labels = labels_at(self._images.labels, sources)
            batch = tuple(view.permute(0, 3, 1, 2) for view in views), labels
            self.wait_seconds += time.perf_counter() - started
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was yielded, for all shards.

        With several shards and torch.distributed initialised this is a collective: every process must call
        it.
        """
        own = {
            "shard": self._shard,
            "checkpoint": without_seeds((self._checkpoint or b"").decode("latin-1"), *self._seeds),
            "bad": [*self._stand_ins.bad.items()],
        }
        shards: list[Any] = [own]
        if self._num_shards > 1 and dist.is_available() and dist.is_initialized():
            shards = [None] * self._num_shards
            dist.all_gather_object(shards, own)
        return {
            "version": VERSION,
            "done": self._done,
            "yielded": self._yielded,
            "settings": self._settings(),
            "files": self._fingerprint,
            "shards": pack(shards),
            **({"begun": self._begun} if self._begun else {}),
            **({"order_of": self._order.shares_at(self._done)} if self._pool is not None else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the last batch of a saved loader; the next `iter()` yields the rest of its epoch.

        If files have come or gone since, or the state is of an earlier version of this package, which had another
        order, the rest of the epoch is as long but begins the order anew, with a warning.

        With another number of shards the batches of all shards together hold the images that they would have held:
        only who has which of them is new, and augmentations draw other numbers.

        Raises:
            ValueError: the state is of a loader with other views, seed or batch size of all shards, or lacks this
                shard.
        """
        now, then = self._settings(), state["settings"]
        shards = then["num_shards"]
        divided_anew = shards != self._num_shards
        if divided_anew:
            now, then = _of_all(now), _of_all(then)
        if now != then:
            raise ValueError(
                "the saved position does not fit these settings: "
                + "; ".join(
                    f"{name} was {then.get(name)}, is {now.get(name)}"
                    for name in {**then, **now}
                    if now.get(name) != then.get(name)
                )
            )
        self._stop()
        self._stand_ins = StandIns(len(self._images.files))
        self._yielded = state["yielded"]
        self._resuming = self._yielded < self._batches
        self._checkpoint, self._done, self._begun = None, 0, 0
        if state["files"] != self._fingerprint:
            log.warning("the image files are not those of the checkpoint: their order begins anew")
            return
        if state.get("version") != VERSION:
            log.warning("the checkpoint is of another version, which shuffled otherwise: the files' order begins anew")
            return
        found = unpack(state["shards"])
        self._done = state["done"]
        self._order.take_over(self._done, state.get("order_of", shards))
        if divided_anew:
            self._begun = self._done
            self._retry(dict(entry for shard in found for entry in shard["bad"]))
            return
        own = [shard for shard in found if shard["shard"] == self._shard]
        if not own:
            raise ValueError(f"the saved position lacks shard {self._shard}: it was saved by one process alone")
        self._begun = state.get("begun", 0)
        self._checkpoint = with_seeds(own[0]["checkpoint"], *self._seeds).encode("latin-1") or None
        self._retry(dict(own[0]["bad"]))

    @property
    def _seeds(self) -> tuple[int, int, int]:
        """Seed, shard and number of views, of which the seeds of DALI's operators follow."""
        seed = self._seed
        if self._begun:  # by another number of shards: not the numbers of the training's begin once more
            seed = int(np.random.SeedSequence((self._seed, self._begun)).generate_state(1, np.uint64)[0])
        return seed, self._shard, len(self._views)

    def _settings(self) -> dict[str, Any]:
        return {
            # States of versions without solarisation do not name it.
            "views": repr(self._views).replace(_UNSOLARISED, ""),
            "seed": self._seed,
            "batch_size": self._output.batch_size,
            "num_shards": self._num_shards,
            **({} if self._pool is None else {"pool": self._pool}),
        }

    def _advance(self) -> tuple[tuple, list[int]]:
        """The next outputs of DALI and the files' places; after a failure it starts anew, without the bad files."""
        for attempt in itertools.count(1):
            try:
                if self._pipeline is None:
                    self._start()
                else:
                    self._checked.name_damaged(self._decoded)
                outputs = self._pipeline.run()
                break
            except RuntimeError as error:
                awaited = self._sources[0] if self._sources else []
                self._stop()
                if isinstance(error, NoImageLeftError):
                    raise
                # The pipeline's queue, and the batch it was handed last.
                self._checked.failed(error, attempt, awaited, self._output.prefetch + 1)
            except BaseException:  # Ctrl-C between a batch and its labels: the next call starts anew
                self._stop()
                raise
        self._checkpoint = self._pipeline.checkpoint()
        self._done += 1
        self._latest = self._sources.popleft()
        return outputs, self._latest

    def _decoded(self) -> list[str]:
        return [self._images.files[source] for sources in (self._latest, *self._sources) for source in sources]

    def _start(self) -> None:
        self._asked = self._fed = self._done
        self._expected = self._order.begin_of_pool(self._done)
        self._pipeline = training_pipeline(
            loosely(self._feed),
            self._views,
            self._output,
            seed=self._seeds[0],
            shard=self._shard,
            checkpoint=self._checkpoint,
        )

    def _stop(self) -> None:
        self._pipeline = None
        self._checked.reader.close()
        self._asked_sources.clear()
        self._sources.clear()

    def _feed(self, _: int) -> list[np.ndarray]:
        """The next batch of encoded images for DALI, which copies them before it asks for more."""
        checked = self._checked
        while self._asked <= self._fed + checked.reader.ahead - 1:
            sources = [self._stand_ins.of(place) for place in self._order.places(self._asked).tolist()]
            checked.reader.request([self._images.files[source] for source in sources], self._coming())
            self._asked_sources.append(sources)
            self._asked += 1
        sources = self._asked_sources.popleft()
        encoded = checked.take(sources)
        if encoded.bad:
            self._mend(sources, encoded)
        checked.fed()
        self._sources.append(sources)
        self._fed += 1
        return encoded.images

    def _coming(self) -> list[str]:
        """Locations of what comes into the pool of the batch that is asked for and has not been told to the system."""
        if not self._order.ahead:
            return []
        first, self._expected = self._expected, self._asked + self._order.ahead
        return [self._images.files[place] for place in self._order.lying(first, self._expected).tolist()]

    def _mend(self, sources: list[int], encoded: Encoded) -> None:
        """Replace the bad images of a batch; no file is read twice, and of bad ones in a row ever more at once."""
        self._note({sources[place]: _found(reason) for place, reason in encoded.bad.items()})
        left, reach = [*encoded.bad], 1
        while left:
            wanted: dict[int, int] = {}  # places in the list to those among what is read
            for start in dict.fromkeys(self._stand_ins.of(sources[place]) for place in left):
                for source in self._stand_ins.following(start, reach):
                    wanted.setdefault(source, len(wanted))
            read = self._checked.read([self._images.files[source] for source in wanted])
            for place in left:
                while (source := self._stand_ins.of(sources[place])) in wanted and wanted[source] in read.bad:
                    self._note({source: _found(read.bad[wanted[source]])})
                sources[place] = source
                if source in wanted:
                    encoded.images[place] = read.images[wanted[source]]
            left = [place for place in left if sources[place] not in wanted]
            reach = max(1, min(2 * reach, _TOGETHER // max(len(left), 1)))

    def _retry(self, bad: dict[int, str]) -> None:
        """Of the bad files of a state, keep those that still cannot be decoded.

        What could not be read may be there again, and is read when its turn comes: no run is without it for ever.
        """
        tried = [place for place, reason in bad.items() if of_decoding(reason)]
        for start in range(0, min(len(tried), _RETRIED), _TOGETHER):
            group = tried[start : min(start + _TOGETHER, _RETRIED)]
            found = self._checked.read([self._images.files[place] for place in group], suspects=True)
            self._note({group[number]: _found(reason) for number, reason in found.bad.items()})
        self._note({place: bad[place] for place in tried[_RETRIED:]})

    def _note(self, bad: dict[int, str]) -> None:
        """Put the next good file of the list in the place of each bad one, and tell of it.

        Raises:
            NoImageLeftError: more than half are bad.
        """
        for place, reason in bad.items():
            if self._stand_ins.add(place, reason):
                tell(self._images.files[place], reason, self._on_bad_file)
                judge(self._images.files, self._stand_ins.bad)


def _found(reason: str) -> str:
    return DURING + reason


def _of_all(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a loader without what differs where more or fewer processes share its batches."""
    return {name: value for name, value in settings.items() if name != "num_shards"} | {
        "batch_size": settings["batch_size"] * settings["num_shards"]
    }


class SingleViewLoader:
    """One augmented view of each image, as `(images, labels)`; otherwise a `ContrastiveLoader`."""

    def __init__(self, loader: ContrastiveLoader) -> None:
        self._loader = loader

    @property
    def batch_size(self) -> int:
        """Images of a batch, of this process."""
        return self._loader._output.batch_size

    @property
    def images(self) -> int:
        """How many there are, of all processes."""
        return len(self._loader._images.files)

    def __len__(self) -> int:
        """Full batches an epoch."""
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for (images,), labels in self._loader:
            yield images, labels

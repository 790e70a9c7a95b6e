"""Iterators over the DALI pipelines: zero-copy torch batches, resumable, not ended by a bad file."""

import base64
import hashlib
import json
import logging
import math
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakMethod

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from amcl_fast.data.augment import Augmentation
from amcl_fast.data.decoding.complaints import complaints
from amcl_fast.data.decoding.damaged import Damaged
from amcl_fast.data.decoding.trial import Trial
from amcl_fast.data.graph import (
    Output,
    Source,
    evaluation_pipeline,
    training_pipeline,
    with_seeds,
    without_seeds,
)
from amcl_fast.data.loader.order import Order
from amcl_fast.data.locations import shown
from amcl_fast.data.reading.reader import Encoded, Reader
from amcl_fast.data.reading.reduction import Reduction
from amcl_fast.data.scan.classes import Images
from amcl_fast.data.scan.headers import NONE_MEASURED, NoImageLeftError

log = logging.getLogger(__name__)

BadFileHandler = Callable[[str, str], None]

_STATE_VERSION = 2
# Bad files beyond these are listed without a warning of their own: a folder may have gone as a whole.
_TOLD = 100
# What a loader of this process has said need not be said by the next one.
_told: set[tuple[str, str]] = set()
# Batches without a doubtful image after which the process that tries them out is let go.
_TRIAL_REST = 50
# Failures of DALI on damaged pixels after which it decodes nothing that was not tried out elsewhere.
_MOST_FAILURES = 8
# Sides of an evaluation's images that reduced ones keep, so that their centre is averaged as that of others is.
_SPARE = 2

# Of all loaders of the process: so are the complaints.
_DAMAGED = Damaged()

_NONE_LEFT = "no file of the data set can be read and decoded any more"


class _Checked:
    """Encoded images that DALI's decoder survives: read, checked and, where that leaves doubts, tried out."""

    def __init__(self, output: Output, shorter: float) -> None:
        """Make the processes' handles.

        Args:
            output: what becomes of the images.
            shorter: pixels of its shorter side that an image must keep.
        """
        reduction = None
        if output.reduce_above is not None:
            reduction = Reduction(output.reduce_above, shorter)
        self.reader = Reader(reduction=reduction, threads=output.num_threads)
        self._trial = Trial(output.device, output.device_id)
        self._passed: set[bytes] = set()
        self._rest = 0
        self._careful = 0.0
        self._failures = 0

    def take(self) -> Encoded:
        """The images that were requested first; those that cannot be decoded are bad."""
        complaints()
        return self._tried(self.reader.take())

    def read(self, files: list[str]) -> Encoded:
        """Images that are wanted out of turn."""
        return self._tried(self.reader.read(files))

    def _tried(self, encoded: Encoded) -> Encoded:
        doubtful = [place for place in range(len(encoded.images)) if place not in encoded.bad]
        if not self._careful:
            doubtful = [place for place in encoded.doubtful if place not in encoded.bad]
        for place in doubtful:
            image = encoded.images[place]
            digest = hashlib.blake2b(image.data, digest_size=16).digest()
            if digest in self._passed:
                continue
            self._rest = _TRIAL_REST
            problem = self._trial(image)
            if problem is None:
                self._passed.add(digest)
            else:
                encoded.bad[place] = problem
        self._rest -= 1
        if not self._rest:
            self._trial.close()
        return encoded

    def name_damaged(self, decoded: Callable[[], list[str]]) -> None:
        """Name those of the files `decoded` of which decoders have complained."""
        with suppress(OSError):  # that is told where it is in the way
            if _DAMAGED.look(decoded, self.reader.read, self._trial):
                self._rest = _TRIAL_REST

    def failed(self, batches: int) -> None:
        """DALI failed on one of the next `batches`: every image of theirs is tried out.

        After a few failures every image is, once: a decoder that has met damaged pixels some hundred times was seen to
        leave the heap corrupt.
        """
        self._failures += 1
        self._careful = batches
        if self._failures >= _MOST_FAILURES:
            self._careful = math.inf
        if self._failures == _MOST_FAILURES:
            log.warning(
                "DALI failed on damaged images %d times: from now on each image is decoded in a process of its own "
                "before it is used for the first time, which takes longer",
                _MOST_FAILURES,
            )

    def fed(self) -> None:
        """A batch has gone to DALI."""
        self._careful = max(self._careful - 1, 0)

    def close(self) -> None:
        """End the processes; they start again when they are needed."""
        self.reader.close()
        self._trial.close()


class ContrastiveLoader:
    """Endless epochs of augmented views, a fixed number of full batches each.

    Yields `(views, labels)`: a tuple of (n, 3, size, size) tensors of `output.dtype` in channels_last memory format,
    one a view, and (n,) int64 labels. The tensors share DALI's memory: DALI gives a buffer away with its
    outputs and never writes to it again, so a batch stays valid for as long as it is held.

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
        on_bad_file: BadFileHandler | None = None,
    ) -> None:
        """Make a loader; DALI starts with the first batch.

        Args:
            images: files and labels, the same in every shard.
            views: one augmentation a view.
            output: size of the images, batch size of this shard, device.
            seed: base seed, the same in every shard.
            shard: index of this process.
            num_shards: number of processes.
            pool: images of this process that are mixed at a time (`Order`); None: all.
            on_bad_file: called with location and reason when a file turns out to be bad during the run.

        Raises:
            ValueError: no views, a shard out of range, or too few images for one batch in each
                shard.
        """
        if not views:
            raise ValueError("views: got none; at least one is needed")
        if not 0 <= shard < num_shards:
            raise ValueError(f"shard={shard}: expected 0 <= shard < num_shards={num_shards}")
        self._order = Order(len(images.files), output.batch_size, seed=seed, share=shard, shares=num_shards, pool=pool)
        self._pool = pool
        self._batches = self._order.batches
        if not self._batches:
            raise ValueError(
                f"{len(images.files)} training images are too few: {num_shards} process(es) with batches of "
                f"{output.batch_size} need {num_shards * output.batch_size}; lower batch_size"
            )
        self._images = images
        # It is part of every state, and computed of millions of names.
        self._fingerprint = images.fingerprint
        # Which file stands at a place of the list instead of a bad one.
        self._source: dict[int, int] = {}
        self._views = list(views)
        self._output = output
        self._seed, self._shard, self._num_shards = seed, shard, num_shards
        self._on_bad_file = on_bad_file
        self._bad: dict[int, str] = {}
        self._pipeline: Any = None
        self._checkpoint: bytes | None = None
        # The smallest crop is not enlarged for it.
        self._checked = _Checked(output, output.size / min(view.least_share for view in views))
        self._done = 0  # batches in all
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
            labels = _at(self._images.labels, sources)
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
            "bad": [*self._bad.items()],
        }
        shards: list[Any] = [own]
        if self._num_shards > 1 and dist.is_available() and dist.is_initialized():
            shards = [None] * self._num_shards
            dist.all_gather_object(shards, own)
        return {
            "version": _STATE_VERSION,
            "done": self._done,
            "yielded": self._yielded,
            "settings": self._settings(),
            "files": self._fingerprint,
            "shards": _pack(shards),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the last batch of a saved loader; the next `iter()` yields the rest of its epoch.

        If files have come or gone since, or the state is of an earlier version of this package, which had another
        order, the rest of the epoch is as long but begins the order anew, with a warning.

        Raises:
            ValueError: the state is of a loader with other views, seed, batch size or number of shards, or
                lacks this shard.
        """
        now, then = self._settings(), state["settings"]
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
        self._bad, self._source = {}, {}
        self._yielded = state["yielded"]
        self._resuming = self._yielded < self._batches
        self._checkpoint, self._done = None, 0
        if state["files"] != self._fingerprint:
            log.warning("the image files are not those of the checkpoint: their order begins anew")
            return
        if state.get("version") != _STATE_VERSION:
            log.warning("the checkpoint is of another version, which shuffled otherwise: the files' order begins anew")
            return
        own = [shard for shard in _unpack(state["shards"]) if shard["shard"] == self._shard]
        if not own:
            raise ValueError(f"the saved position lacks shard {self._shard}: it was saved by one process alone")
        self._checkpoint = with_seeds(own[0]["checkpoint"], *self._seeds).encode("latin-1") or None
        self._done = state["done"]
        self._replace(dict(own[0]["bad"]))

    @property
    def _seeds(self) -> tuple[int, int, int]:
        """Seed, shard and number of views, of which the seeds of DALI's operators follow."""
        return self._seed, self._shard, len(self._views)

    def _settings(self) -> dict[str, Any]:
        return {
            "views": repr(self._views),
            "seed": self._seed,
            "batch_size": self._output.batch_size,
            "num_shards": self._num_shards,
            **({} if self._pool is None else {"pool": self._pool}),
        }

    def _advance(self) -> tuple[tuple, list[int]]:
        """The next outputs of DALI and the files' places; after a failure it starts anew, without the bad files."""
        failed_here = False
        while True:
            try:
                if self._pipeline is None:
                    self._start()
                else:
                    self._checked.name_damaged(self._decoded)
                outputs = self._pipeline.run()
                break
            except RuntimeError as error:
                self._stop()
                # A failure that names no file may have passed (a network folder); the same one twice has not.
                if failed_here or isinstance(error, NoImageLeftError):
                    raise
                failed_here = True
                log.debug("DALI failed: %s", error)
                # The pipeline's queue, and the batch it was handed last.
                self._checked.failed(self._output.prefetch + 1)
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
            _loosely(self._feed),
            self._views,
            self._output,
            seed=self._seed,
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
            sources = [self._source.get(place, place) for place in self._order.places(self._asked).tolist()]
            checked.reader.request([self._images.files[source] for source in sources], self._coming())
            self._asked_sources.append(sources)
            self._asked += 1
        sources, encoded = self._asked_sources.popleft(), checked.take()
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
        """Replace the bad images of a batch."""
        while encoded.bad:
            self._replace({sources[place]: f"found during the run: {reason}" for place, reason in encoded.bad.items()})
            places = list(encoded.bad)
            for place in places:
                sources[place] = self._source[sources[place]]
            substitutes = self._checked.read([self._images.files[sources[place]] for place in places])
            for place, image in zip(places, substitutes.images, strict=True):
                encoded.images[place] = image
            encoded.bad = {places[place]: reason for place, reason in substitutes.bad.items()}

    def _replace(self, bad: dict[int, str]) -> None:
        """Put the next good file of the list in the place of each bad one."""
        for place, reason in bad.items():
            if place not in self._bad:
                self._bad[place] = reason
                _tell(self._images.files[place], reason, len(self._bad), self._on_bad_file)
        total = len(self._images.files)
        if len(self._bad) == total:
            raise NoImageLeftError(_NONE_LEFT)
        good = min(place for place in range(total) if place not in self._bad)
        for place in sorted(self._bad, reverse=True):
            if (place + 1) % total not in self._bad:
                good = (place + 1) % total
            self._source[place] = good


class SingleViewLoader:
    """One augmented view of each image, as `(images, labels)`; otherwise a `ContrastiveLoader`."""

    def __init__(self, loader: ContrastiveLoader) -> None:
        self._loader = loader

    def __len__(self) -> int:
        """Full batches an epoch."""
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for (images,), labels in self._loader:
            yield images, labels


class EvaluationLoader:
    """All images once, in order and without augmentation.

    Yields `(images, labels)`: (n, 3, size, size) of `output.dtype` in channels_last memory format and (n,) int64. The
    last batch holds what is left. A file that turns out to be bad is left out.
    """

    def __init__(
        self, images: Images, output: Output, *, on_bad_file: BadFileHandler | None = None, may_be_none: bool = False
    ) -> None:
        """Make a loader; each `iter()` starts DALI anew.

        Args:
            images: files and labels.
            output: size of the images, batch size, device.
            on_bad_file: called with location and reason when a file turns out to be bad.
            may_be_none: there may be no images, or no good one: one process's part of them.

        Raises:
            ValueError: no images.
        """
        self._may_be_none = may_be_none
        if not images.files and not may_be_none:
            raise ValueError("images: got none; at least one is needed")
        self._files, self._labels = images.files, images.labels
        self._output = output
        self._on_bad_file = on_bad_file

    def __len__(self) -> int:
        """Batches, the last partial one included."""
        return -(-len(self._files) // self._output.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        files, labels = self._files, self._labels
        if not files and self._may_be_none:
            return
        images = _Pass(files, self._output)
        told = 0
        try:
            while (outcome := images.advance()) is not None:
                for place, reason in list(images.bad.items())[told:]:
                    told += 1
                    _tell(files[place], reason, told, self._on_bad_file)
                batch, places = outcome
                yield batch, _at(labels, places)
        finally:
            images.close()
            if images.bad:
                keep = np.delete(np.arange(len(files)), [*images.bad])
                self._files, self._labels = files.take(keep), labels[keep]
        for place, reason in list(images.bad.items())[told:]:
            told += 1
            _tell(files[place], reason, told, self._on_bad_file)
        if not self._files and not self._may_be_none:
            raise NoImageLeftError(NONE_MEASURED)


class _Pass:
    """The good ones of a list of files, in order and without augmentation."""

    def __init__(self, files: Sequence[str], output: Output) -> None:
        self.bad: dict[int, str] = {}
        self._files, self._output = files, output
        self._checked = _Checked(output, _SPARE * output.size / output.crop_pct)
        self._pipeline: Any = None
        self._next = 0  # place of the first file that has not been handed out
        self._asked = 0
        self._asked_places: deque[list[int]] = deque()
        self._left: list[tuple[int, np.ndarray]] = []
        self._places: deque[list[int]] = deque()  # of the batches in DALI
        self._latest: list[int] = []

    def advance(self) -> tuple[Tensor, list[int]] | None:
        """The next batch of images and their places in the list; None after the last one."""
        failed_here = False
        while True:
            try:
                if self._pipeline is None:
                    self._asked = self._next
                    self._pipeline = evaluation_pipeline(_loosely(self._feed), self._output)
                else:
                    self._checked.name_damaged(self._decoded)
                (images,) = self._pipeline.run()
                break
            except StopIteration:
                self._checked.name_damaged(self._decoded)
                return None
            except RuntimeError as error:
                self._stop()
                if failed_here:
                    raise
                failed_here = True
                log.debug("DALI failed: %s", error)
                self._checked.failed(self._output.prefetch + 1)
        self._latest = self._places.popleft()
        self._next = self._latest[-1] + 1
        return torch.from_dlpack(images.as_tensor()).permute(0, 3, 1, 2), self._latest

    def _decoded(self) -> list[str]:
        return [self._files[place] for places in (self._latest, *self._places) for place in places]

    def close(self) -> None:
        """End DALI and the processes."""
        self._stop()
        self._checked.close()

    def _stop(self) -> None:
        self._pipeline = None
        self._checked.reader.close()
        self._asked_places.clear()
        self._left.clear()
        self._places.clear()

    def _feed(self, _: int) -> list[np.ndarray]:
        """The next batch of encoded images for DALI; full ones as long as there are enough."""
        found, self._left = self._left, []
        while len(found) < self._output.batch_size:
            self._ask()
            if not self._asked_places:
                break
            places, encoded = self._asked_places.popleft(), self._checked.take()
            for number, reason in encoded.bad.items():
                self.bad[places[number]] = f"found during the run: {reason}"
            images = zip(places, encoded.images, strict=True)
            good = [(place, image) for place, image in images if place not in self.bad]
            # What fills no batch by itself waits for the next list, whose bytes may take the place of its own.
            if found or len(good) < self._output.batch_size:
                good = [(place, image.copy()) for place, image in good]
            found += good
        found, self._left = found[: self._output.batch_size], found[self._output.batch_size :]
        self._checked.fed()
        if not found:
            raise StopIteration
        self._places.append([place for place, _ in found])
        return [image for _, image in found]

    def _ask(self) -> None:
        reader = self._checked.reader
        while len(self._asked_places) < reader.ahead and self._asked < len(self._files):
            end = min(self._asked + self._output.batch_size, len(self._files))
            self._asked_places.append([place for place in range(self._asked, end) if place not in self.bad])
            reader.request([self._files[place] for place in self._asked_places[-1]])
            self._asked = end


def _at(labels: np.ndarray, places: list[int]) -> Tensor:
    """(n,) int64 labels of a batch."""
    return torch.from_numpy(labels[places].astype(np.int64))


def _pack(shards: list[Any]) -> str:
    """What is in a state for each process: hundreds, which say nearly the same, and thousands of bad files."""
    return base64.b64encode(zlib.compress(json.dumps(shards).encode())).decode()


def _unpack(shards: str | list[Any]) -> list[Any]:
    """The reverse; earlier versions did not pack them."""
    if isinstance(shards, str):
        return json.loads(zlib.decompress(base64.b64decode(shards)))
    return [
        {**shard, "checkpoint": base64.b64decode(shard["checkpoint"]).decode("latin-1"), "bad": [*shard["bad"].items()]}
        for shard in shards
    ]


def _loosely(method: Source) -> Source:
    """The method of a loader that holds the pipeline that holds it: DALI and the processes go when the loader goes."""
    reference = WeakMethod(method)

    def call(batch: int) -> Sequence[np.ndarray]:
        bound = reference()
        assert bound is not None
        return bound(batch)

    return call


def _tell(location: str, reason: str, number: int, handler: BadFileHandler | None) -> None:
    if (location, reason) not in _told:
        _told.add((location, reason))
        if number <= _TOLD:
            log.warning("%s: %s", shown(location), reason)
        elif number == _TOLD + 1:
            log.warning("more than %d files turned out to be bad: the others are only listed", _TOLD)
    if handler is not None:
        handler(location, reason)

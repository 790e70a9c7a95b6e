"""Iterators over the DALI pipelines: zero-copy torch batches, resumable, not ended by a bad file."""

import base64
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from amcl_fast.data.augment import Augmentation
from amcl_fast.data.decodable import find_undecodable
from amcl_fast.data.pipeline import Output, evaluation_pipeline, training_pipeline
from amcl_fast.data.scan import Images

log = logging.getLogger(__name__)

BadFileHandler = Callable[[str, str], None]

_BAD = "found during the run: it cannot be read and decoded"
_PIXEL = b"P6 1 1 255\n\0\0\0"


class ContrastiveLoader:
    """Endless epochs of augmented views, a fixed number of full batches each.

    Yields `(views, labels)`: a tuple of (n, 3, size, size) float32 tensors in channels_last memory format,
    one a view, and (n,) int64 labels. The tensors share DALI's memory: DALI gives a buffer away with its
    outputs and never writes to it again, so a batch stays valid for as long as it is held.

    Every epoch reshuffles the files, in the same way in every shard, and drops the last partial batch. Each
    `iter()` yields `len(self)` batches; one that is abandoned half way is followed by batches that continue
    where it stopped. The same seed, files, batch size and number of shards give the same bits, whatever the
    number of threads.

    A file that turns out to be bad in the middle of a run is replaced for the rest of the run by the next
    good one in the list. The order, the number of batches and the other shards are not affected.

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
            on_bad_file: called with path and reason when a file turns out to be bad during the run.

        Raises:
            ValueError: no views, a shard out of range, or too few images for one batch in each
                shard.
        """
        if not views:
            raise ValueError("views: got none; at least one is needed")
        if not 0 <= shard < num_shards:
            raise ValueError(f"shard={shard}: expected 0 <= shard < num_shards={num_shards}")
        self._batches = len(images.files) // num_shards // output.batch_size
        if not self._batches:
            raise ValueError(
                f"{len(images.files)} training images are too few: {num_shards} process(es) with batches of "
                f"{output.batch_size} need {num_shards * output.batch_size}; lower batch_size"
            )
        # With a padded last batch DALI's epochs are this long, in every shard.
        images_padded = -(-len(images.files) // num_shards)
        self._dali_batches = -(-images_padded // output.batch_size)
        self._images = images
        self._labels = torch.tensor(images.labels, dtype=torch.int64)
        # Which file stands at which place of the list: all at their own, until a bad one is replaced.
        self._source = torch.arange(len(images.files))
        self._views = list(views)
        self._output = output
        self._seed, self._shard, self._num_shards = seed, shard, num_shards
        self._on_bad_file = on_bad_file
        self._bad: dict[int, str] = {}
        self._pipeline: Any = None
        self._checkpoint: bytes | None = None
        self._position = 0  # within DALI's epoch
        self._yielded = 0  # within the present iteration
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
            while self._position >= self._batches:  # the dropped remainder of an epoch
                self._advance()
            outputs = self._advance()
            self._yielded += 1
            *views, index = (torch.from_dlpack(tensors.as_tensor()) for tensors in outputs)
            labels = self._labels[self._source[index.view(-1).long()]]
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
            "checkpoint": base64.b64encode(self._checkpoint or b"").decode(),
            "bad": dict(self._bad),
        }
        shards: list[Any] = [own]
        if self._num_shards > 1 and dist.is_available() and dist.is_initialized():
            shards = [None] * self._num_shards
            dist.all_gather_object(shards, own)
        return {
            "position": self._position,
            "yielded": self._yielded,
            "settings": self._settings(),
            "files": self._fingerprint(),
            "shards": shards,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the last batch of a saved loader; the next `iter()` yields the rest of its epoch.

        If files have come or gone since, the rest of the epoch is as long but begins the order anew, with a
        warning.

        Raises:
            ValueError: the state is of a loader with other views, seed, batch size or number of shards, or
                lacks this shard.
        """
        now, then = self._settings(), state["settings"]
        if now != then:
            raise ValueError(
                "the saved position does not fit these settings: "
                + "; ".join(f"{name} was {then[name]}, is {now[name]}" for name in now if now[name] != then[name])
            )
        self._pipeline = None
        self._bad, self._source = {}, torch.arange(len(self._source))
        self._yielded = state["yielded"]
        self._resuming = self._yielded < self._batches
        if state["files"] != self._fingerprint():
            log.warning("the image files are not those of the checkpoint: their order begins anew")
            self._checkpoint, self._position = None, 0
            return
        own = [shard for shard in state["shards"] if shard["shard"] == self._shard]
        if not own:
            raise ValueError(f"the saved position lacks shard {self._shard}: it was saved by one process alone")
        self._checkpoint = base64.b64decode(own[0]["checkpoint"]) or None
        self._position = state["position"]
        self._replace(own[0]["bad"])

    def _settings(self) -> dict[str, Any]:
        return {
            "views": repr(self._views),
            "seed": self._seed,
            "batch_size": self._output.batch_size,
            "num_shards": self._num_shards,
        }

    def _fingerprint(self) -> str:
        # Of the names, not of the paths: the folder may have moved.
        digest = hashlib.sha256()
        for path, label in zip(self._images.files, self._images.labels, strict=True):
            digest.update(f"{label}/{os.path.basename(path)}\0".encode())
        return digest.hexdigest()

    def _advance(self) -> tuple:
        """The next outputs of DALI; a bad file on the way is replaced, and the pipeline made anew."""
        failed_here = False
        while True:
            try:
                if self._pipeline is None:
                    self._pipeline = self._build(self._files(), self._output)
                outputs = self._pipeline.run()
                break
            except RuntimeError as error:
                self._pipeline = None
                culprits = self._find_bad_files()
                # A failure that names no file may have passed (a network folder); the same one twice has not.
                if not culprits and failed_here:
                    raise
                failed_here = True
                log.debug("DALI failed: %s", error)
                self._replace(dict.fromkeys(culprits, _BAD))
        self._checkpoint = self._pipeline.checkpoint()
        self._position = (self._position + 1) % self._dali_batches
        return outputs

    def _build(self, files: list[str], output: Output) -> Any:
        return training_pipeline(
            files,
            self._views,
            output,
            seed=self._seed,
            shard=self._shard,
            num_shards=self._num_shards,
            checkpoint=self._checkpoint,
        )

    def _files(self) -> list[str]:
        files = list(self._images.files)
        for place in self._bad:
            files[place] = files[int(self._source[place])]
        return files

    def _find_bad_files(self) -> list[int]:
        """Places in the list of the undecodable ones among the files that DALI was working on.

        The same graph restored to the same position, on a list of one-pixel images, tells which those are.
        """
        output = replace(self._output, size=1)
        with tempfile.NamedTemporaryFile(suffix=".ppm") as pixel:
            pixel.write(_PIXEL)
            pixel.flush()
            stand_in = self._build([pixel.name] * len(self._images.files), output)
            # The pipeline's queue, and one batch more in the reader's.
            upcoming = {
                int(place)
                for _ in range(self._output.prefetch + 2)
                for place in torch.from_dlpack(stand_in.run()[-1].as_tensor()).view(-1)
            }
        # A substitute may be the bad one.
        places = sorted({int(self._source[place]) for place in upcoming})
        by_path = {self._images.files[place]: place for place in places}
        return [by_path[path] for path in find_undecodable(list(by_path), output)]

    def _replace(self, bad: dict[int, str]) -> None:
        """Put the next good file of the list in the place of each bad one."""
        for place, reason in bad.items():
            log.warning("%s: %s", self._images.files[place], reason)
            if self._on_bad_file is not None:
                self._on_bad_file(self._images.files[place], reason)
        self._bad.update(bad)
        total = len(self._source)
        if len(self._bad) == total:
            raise RuntimeError("no file of the data set can be decoded any more")
        for place in self._bad:
            good = place
            while good in self._bad:
                good = (good + 1) % total
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

    Yields `(images, labels)`: (n, 3, size, size) float32 in channels_last memory format and (n,) int64. The
    last batch holds what is left. A file that turns out to be bad is left out.
    """

    def __init__(self, images: Images, output: Output, *, on_bad_file: BadFileHandler | None = None) -> None:
        """Make a loader; each `iter()` starts DALI anew.

        Args:
            images: files and labels.
            output: size of the images, batch size, device.
            on_bad_file: called with path and reason when a file turns out to be bad.

        Raises:
            ValueError: no images.
        """
        if not images.files:
            raise ValueError("images: got none; at least one is needed")
        self._files = list(images.files)
        self._labels = torch.tensor(images.labels, dtype=torch.int64)
        self._output = output
        self._on_bad_file = on_bad_file

    def __len__(self) -> int:
        """Batches, the last partial one included."""
        return -(-len(self._files) // self._output.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        done = 0
        failed_at = -1
        pipeline = None
        while done < len(self._files):
            batch = min(self._output.batch_size, len(self._files) - done)
            try:
                if pipeline is None:
                    pipeline = evaluation_pipeline(self._files[done:], self._output)
                    start = done
                images, index = (torch.from_dlpack(out.as_tensor()) for out in pipeline.run())
            except RuntimeError:
                pipeline = None
                if not self._drop_bad_files(done) and failed_at == done:
                    raise
                failed_at = done
                continue
            labels = self._labels[start + index.view(-1)[:batch].long()]
            yield images[:batch].permute(0, 3, 1, 2), labels
            done += batch

    def _drop_bad_files(self, done: int) -> bool:
        """Leave out the undecodable files among those that DALI was working on; True if there were any."""
        ahead = self._files[done : done + (self._output.prefetch + 2) * self._output.batch_size]
        bad = set(find_undecodable(ahead, self._output))
        for path in sorted(bad):
            log.warning("%s: %s", path, _BAD)
            if self._on_bad_file is not None:
                self._on_bad_file(path, _BAD)
        keep = [place for place, path in enumerate(self._files) if path not in bad]
        self._files = [self._files[place] for place in keep]
        self._labels = self._labels[keep]
        return bool(bad)

"""Images without augmentation, once and in order."""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from amcl_fast.data.graph import Output
from amcl_fast.data.loader.bad_files import BadFileHandler, tell
from amcl_fast.data.loader.batches import labels_at, loosely
from amcl_fast.data.loader.checked import Checked
from amcl_fast.data.loader.idle import Evaluation, Idle
from amcl_fast.data.scan.headers import NONE_MEASURED, NoImageLeftError
from amcl_fast.data.scan.images import Images
from amcl_fast.left_out import DURING

# Sides of an evaluation's images that reduced ones keep, so that their centre is averaged as that of others is.
_SPARE = 2


class EvaluationLoader:
    """All images once, in order and without augmentation.

    Yields `(images, labels)`: (n, 3, size, size) of `output.dtype` in channels_last memory format and (n,) int64. The
    last batch holds what is left. A file that turns out to be bad is left out.
    """

    def __init__(
        self,
        images: Images,
        output: Output,
        *,
        on_bad_file: BadFileHandler | None = None,
        may_be_none: bool = False,
        idle: Idle | None = None,
    ) -> None:
        """Make a loader; DALI starts with the first `iter()`, and stays for the next one.

        Args:
            images: files and labels.
            output: size of the images, batch size, device.
            on_bad_file: called with location and reason when a file turns out to be bad.
            may_be_none: there may be no images, or no good one: one process's part of them.
            idle: keeps DALI for several loaders, one after the other; None: this one alone.

        Raises:
            ValueError: no images.
        """
        self._may_be_none = may_be_none
        if not images.files and not may_be_none:
            raise ValueError("images must have at least one, got none")
        self._files, self._labels = images.files, images.labels
        self._output = output
        self._on_bad_file = on_bad_file
        self._idle = idle or Idle()

    def __len__(self) -> int:
        """Batches, the last partial one included."""
        return -(-len(self._files) // self._output.batch_size)

    def only(self, places: Sequence[int]) -> "EvaluationLoader":
        """A loader of some images alone: those at `places`, in rising order, of what the last pass has given.

        Raises:
            ValueError: no places.
        """
        some = Images(self._files.take(np.asarray(places)), self._labels[np.asarray(places)], [])
        return EvaluationLoader(some, self._output, on_bad_file=self._on_bad_file, idle=self._idle)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        files, labels = self._files, self._labels
        if not files and self._may_be_none:
            return
        images = _Pass(files, self._output, self._idle)
        told = 0
        try:
            while (outcome := images.advance()) is not None:
                for place, reason in list(images.bad.items())[told:]:
                    told += 1
                    tell(files[place], reason, self._on_bad_file)
                batch, places = outcome
                yield batch, labels_at(labels, places)
        finally:
            images.close()
            if images.bad:
                keep = np.delete(np.arange(len(files)), [*images.bad])
                self._files, self._labels = files.take(keep), labels[keep]
        for place, reason in list(images.bad.items())[told:]:
            tell(files[place], reason, self._on_bad_file)
        if not self._files and not self._may_be_none:
            raise NoImageLeftError(NONE_MEASURED)


class _Pass:
    """The good ones of a list of files, in order and without augmentation."""

    def __init__(self, files: Sequence[str], output: Output, idle: Idle) -> None:
        self.bad: dict[int, str] = {}
        self._files, self._output, self._idle = files, output, idle
        self._checked = Checked(output, _SPARE * output.size / output.crop_pct)
        self._pipeline: Evaluation | None = None
        self._next = 0  # place of the first file that has not been handed out
        self._asked = 0
        self._asked_places: deque[list[int]] = deque()
        self._left: list[tuple[int, np.ndarray]] = []
        self._places: deque[list[int]] = deque()  # of the batches in DALI
        self._latest: list[int] = []

    def advance(self) -> tuple[Tensor, list[int]] | None:
        """The next batch of images and their places in the list; None after the last one."""
        for attempt in itertools.count(1):
            try:
                if self._pipeline is None:
                    self._asked = self._next
                    self._pipeline = self._idle.take(self._output).begin(loosely(self._feed))
                else:
                    self._checked.name_damaged(self._decoded)
                images = self._pipeline.run()
                break
            except StopIteration:
                assert self._pipeline is not None
                self._idle.keep(self._output, self._pipeline)
                self._checked.name_damaged(self._decoded)
                return None
            except RuntimeError as error:
                awaited = self._places[0] if self._places else []
                self._stop()
                self._checked.failed(error, attempt, awaited, self._output.prefetch + 1)
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
            places = self._asked_places.popleft()
            encoded = self._checked.take(places)
            for number, reason in encoded.bad.items():
                self.bad[places[number]] = DURING + reason
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

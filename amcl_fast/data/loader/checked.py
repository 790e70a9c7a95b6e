"""Encoded images that DALI's decoder survives, for both loaders."""

import hashlib
import logging
import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from amcl_fast.data.decoding.complaints import complaints
from amcl_fast.data.decoding.damaged import Damaged
from amcl_fast.data.decoding.trial import Trial
from amcl_fast.data.graph import Output
from amcl_fast.data.loader.bad_files import warn_once
from amcl_fast.data.reading.reader import Encoded, Reader
from amcl_fast.data.reading.reduction import Reduction

log = logging.getLogger(__name__)

# Batches without a doubtful image after which the process that tries them out is let go.
_TRIAL_REST = 50
# Failures of DALI on damaged pixels after which it decodes nothing that was not tried out elsewhere.
_MOST_FAILURES = 8

# Failures in a row, after which it is no image's fault.
_ATTEMPTS = 3
# How DALI names the image that it has failed on, by its place in the batch.
_NAMED = re.compile(r"Failed to decode sample #(\d+)")

# Of all loaders of the process: so are the complaints.
_DAMAGED = Damaged()


class Checked:
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
        if output.reader is None:
            self.reader: Any = Reader(reduction=reduction, threads=output.num_threads, limits=output.limits)
        else:
            self.reader = output.reader(reduction, output.num_threads)
        self._trial = Trial(output.device, output.device_id)
        self._passed: set[bytes] = set()
        self._rest = 0
        self._careful = 0.0
        self._suspect: int | None = None
        self._failures = 0

    def take(self, numbers: Sequence[int]) -> Encoded:
        """The images that were requested first; those that cannot be decoded are bad.

        Args:
            numbers: theirs in the whole list, as `failed` is told them.
        """
        complaints()
        encoded = self.reader.take()
        if self._suspect in numbers:
            encoded.doubtful.append(numbers.index(self._suspect))
            self._suspect = None
        return self._tried(encoded, every=bool(self._careful))

    def read(self, files: list[str], *, suspects: bool = False) -> Encoded:
        """Images that are wanted out of turn; suspects are all tried out."""
        return self._tried(self.reader.read(files), every=suspects or bool(self._careful))

    def _tried(self, encoded: Encoded, *, every: bool) -> Encoded:
        for place in range(len(encoded.images)) if every else encoded.doubtful:
            if place in encoded.bad:
                continue
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

    def failed(self, error: RuntimeError, attempt: int, numbers: Sequence[int], in_work: int) -> None:
        """DALI failed, for the `attempt`th time in a row: say what is tried out before the next one.

        First it is the image that DALI names, then the batch, then all that DALI was working on. After a few failures
        it is every image, once: a decoder that has met damaged pixels some hundred times was seen to leave the heap
        corrupt.

        Args:
            error: what it said.
            attempt: from 1 on.
            numbers: of the images of the batch that was awaited, in the whole list.
            in_work: batches that it had been handed and not given back.

        Raises:
            RuntimeError: the same, which no image explains.
        """
        if attempt > _ATTEMPTS:
            raise error
        log.debug("DALI failed: %s", error)
        self._failures += 1
        named = _NAMED.search(str(error))
        if attempt == 1 and named and int(named[1]) < len(numbers):
            self._suspect, self._careful = numbers[int(named[1])], 0
        else:
            self._suspect, self._careful = None, in_work if attempt == _ATTEMPTS else 1
        if self._failures >= _MOST_FAILURES:
            self._careful = math.inf
        if self._failures == _MOST_FAILURES:
            warn_once(
                f"DALI failed on damaged images {_MOST_FAILURES} times: from now on each image is decoded in a process "
                "of its own before it is used for the first time, which takes longer"
            )

    def fed(self) -> None:
        """A batch has gone to DALI."""
        self._careful = max(self._careful - 1, 0)

    def close(self) -> None:
        """End the processes; they start again when they are needed."""
        self.reader.close()
        self._trial.close()

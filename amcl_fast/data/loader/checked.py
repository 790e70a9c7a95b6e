"""Encoded images that DALI's decoder survives, for both loaders."""

import hashlib
import logging
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from amcl_fast.data.decoding.complaints import complaints
from amcl_fast.data.decoding.damaged import Damaged
from amcl_fast.data.decoding.trial import Trial
from amcl_fast.data.graph import Output
from amcl_fast.data.reading.reader import Encoded, Reader
from amcl_fast.data.reading.reduction import Reduction

log = logging.getLogger(__name__)

# Batches without a doubtful image after which the process that tries them out is let go.
_TRIAL_REST = 50
# Failures of DALI on damaged pixels after which it decodes nothing that was not tried out elsewhere.
_MOST_FAILURES = 8

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

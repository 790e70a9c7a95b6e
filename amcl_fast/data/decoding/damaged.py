"""Name the images whose pixels are damaged, though a decoder makes something of them."""

import logging
import time
from collections.abc import Callable

from amcl_fast.data.decoding.complaints import complaints
from amcl_fast.data.decoding.trial import Trial
from amcl_fast.data.locations import shown
from amcl_fast.data.reading.reader import Encoded
from amcl_fast.distributed import world

log = logging.getLogger(__name__)

_TOGETHER = 32
_MOST_NAMED = 5
_MOST_SECONDS = 30.0


class Damaged:
    """Finds the first few images of which decoders complain, in the first process, one decode of each at most.

    A decoder's complaint names no image. Those that were being decoded when one came are decoded again, one by one.
    """

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._looked_at: set[str] = set()
        self._named = 0
        self._heard = 0
        self._seconds = 0.0

    def look(self, decoded: Callable[[], list[str]], read: Callable[[list[str]], Encoded], trial: Trial) -> bool:
        """Name the damaged images among those `decoded`, if there have been complaints since the last call.

        Args:
            decoded: tells the files of the batch that was decoded last and of those that are being decoded.
            read: reads them.
            trial: decodes them.

        Returns:
            Whether `trial` was needed.

        Raises:
            OSError: `read` or `trial` does not work.
        """
        if self._is_over or world()[0] or (counted := complaints()) is None:
            return False
        heard, self._heard = self._heard, counted.heard()
        if self._heard == heard:
            return False
        started = time.monotonic()
        new = [file for file in dict.fromkeys(decoded()) if file not in self._looked_at]
        for start in range(0, len(new), _TOGETHER):
            group = new[start : start + _TOGETHER]
            encoded = read(group)
            for place, (file, image) in enumerate(zip(group, encoded.images, strict=True)):
                if self._is_over:
                    break
                self._looked_at.add(file)
                if place not in encoded.bad and (complaint := trial.complaint(image)):
                    self._named += 1
                    log.warning("%s: damaged, and decoded as far as it goes: %s", shown(file), complaint)
            if self._is_over or self._seconds + time.monotonic() - started > _MOST_SECONDS:
                break
        self._seconds += time.monotonic() - started
        if self._is_over:
            log.warning("further damaged images that can be decoded are not named")
        return True

    @property
    def _is_over(self) -> bool:
        return self._named >= _MOST_NAMED or self._seconds > _MOST_SECONDS

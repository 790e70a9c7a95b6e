"""What becomes of a file that turns out to be bad during a run: which one takes its place, and what is told."""

import logging
from collections.abc import Callable, Iterator

from amcl_fast.data.locations import shown

log = logging.getLogger(__name__)

BadFileHandler = Callable[[str, str], None]

# Bad files beyond these are listed without a warning of their own: a folder may have gone as a whole.
_TOLD = 100
# What a loader of this process has said need not be said by the next one.
_told: set[tuple[str, str]] = set()


def tell(location: str, reason: str, number: int, handler: BadFileHandler | None) -> None:
    """Warn of a bad file, the `number`th of its loader, and hand it on."""
    if (location, reason) not in _told:
        _told.add((location, reason))
        if number <= _TOLD:
            log.warning("%s: %s", shown(location), reason)
        elif number == _TOLD + 1:
            log.warning("more than %d files turned out to be bad: the others are only listed", _TOLD)
    if handler is not None:
        handler(location, reason)


class StandIns:
    """The bad ones of a list, and for each the next good one, which follows the last with the first.

    Finding it takes no longer for many bad ones: each that was passed over leads straight to where the way ended.

    Attributes:
        bad: place to the reason.
    """

    def __init__(self, count: int) -> None:
        """All `count` of the list are good."""
        self.bad: dict[int, str] = {}
        self._count = count
        self._next: dict[int, int] = {}

    def add(self, place: int, reason: str) -> bool:
        """The one at a place is bad; returns whether that is new."""
        if place in self.bad:
            return False
        self.bad[place] = reason
        self._next[place] = (place + 1) % self._count
        return True

    def of(self, place: int) -> int:
        """The place itself where that is good, or else the next good one; there must be one."""
        passed = []
        while place in self._next:
            passed.append(place)
            place = self._next[place]
        self._next.update(dict.fromkeys(passed, place))
        return place

    def following(self, place: int, most: int) -> Iterator[int]:
        """The one that `of` gives, and as many good ones after it as there are, `most` in all."""
        first = place = self.of(place)
        for _ in range(most):
            yield place
            if (place := self.of((place + 1) % self._count)) == first:
                break

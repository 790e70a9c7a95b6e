"""What becomes of a file that turns out to be bad during a run: which one takes its place, and what is told."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

from amcl_fast.data.locations import shown
from amcl_fast.data.scan.headers import NoImageLeftError
from amcl_fast.distributed import world
from amcl_fast.left_out import DURING

log = logging.getLogger(__name__)

BadFileHandler = Callable[[str, str], None]

# Bad files beyond these are listed without a warning of their own: a folder may have gone as a whole.
_NAMED = 5
# What the loaders of a training have said, for none to say it again.
_said: set[str] = set()
_named: set[tuple[str, str]] = set()


def tell(location: str, reason: str, handler: BadFileHandler | None = None) -> None:
    """Hand on a bad file; the first process warns of the first few."""
    entry = shown(location), reason
    if len(_named) < _NAMED and entry not in _named and not world()[0]:
        _named.add(entry)
        log.warning("%s: %s", *entry)
    elif entry not in _named:
        warn_once("further files that turn out to be bad are only listed")
    if handler is not None:
        handler(location, reason)


def warn_once(text: str) -> None:
    """Warn in the first process, if that has not said the same since the training began."""
    if text not in _said and not world()[0]:
        _said.add(text)
        log.warning("%s", text)


def begin_to_tell() -> None:
    """Another training begins, which has nothing said yet."""
    _said.clear()
    _named.clear()


def judge(files: Sequence[str], bad: Mapping[int, str]) -> None:
    """Warn when a hundredth of a training's files, and more than a few, are bad.

    Raises:
        NoImageLeftError: more than half are. A folder may have gone that comes back: a training does not go on for days
            with what is left as if it were all.
    """
    number, count = len(bad), len(files)
    if number == max(_NAMED + 1, -(-count // 100)):
        warn_once(f"{number:,} of {count:,} files to train on have turned out to be bad: see that they are still there")
    if 2 * number > count:
        last = [*bad][-1]
        raise NoImageLeftError(
            f"{number:,} of {count:,} files to train on cannot be read and decoded any more, the last "
            f"{shown(files[last])}: {bad[last].removeprefix(DURING)}; see that they are there, then go on"
        )


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

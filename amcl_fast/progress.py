"""How far something long has come, and when it ends: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")

_SILENT_SECONDS = 2.0  # what is over by then needs no word
_BAR_SECONDS = 0.3  # nor a bar, which takes no line
_LINE_SECONDS = 10.0


class Progress:
    """Counts what is done of something, on stderr: "checking images: 412,000 of 1,281,000, 21 s left".

    On a terminal it is a bar, which is gone when all is done. Elsewhere nothing is written within the first 2 s; then
    there is a line every 10 s, and less often the longer it lasts: after a tenth of the time so far.
    """

    def __init__(self, what: str, total: int | None = None, *, shown: bool = True, lines: bool = True) -> None:
        """Begin.

        Args:
            what: is done, "checking images".
            total: how much there is to do; None: nobody knows, and no end is estimated.
            shown: whether anything is written; one process of a run does.
            lines: whether anything is where stderr is no terminal.
        """
        self.what, self.total, self.done = what, total, 0
        self._started = time.monotonic()
        self._next = self._started + _SILENT_SECONDS
        self._lines = shown and lines and sys.stderr is not None
        self._bar = _bar(what, total) if shown and _on_terminal() else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, count: int) -> None:
        """So many more are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._lines and self.done != self.total and time.monotonic() >= self._next:
            now = time.monotonic()
            self._next = now + max(_LINE_SECONDS, (now - self._started) / 10)
            print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        if self.total is None:
            return f"{self.what}: {self.done:,}"
        seconds = (time.monotonic() - self._started) * (self.total - self.done) / max(self.done, 1)
        return f"{self.what}: {self.done:,} of {self.total:,}, {duration(seconds)} left"


class Loop(Iterable[T]):
    """A loop whose progress is shown while it is iterated over.

    Args:
        items: of the loop; as many as `len` says.
        what, shown, lines: as for `Progress`.
    """

    def __init__(self, items: Iterable[T], what: str, *, shown: bool = True, lines: bool = True) -> None:
        self._items, self._what, self._shown, self._lines = items, what, shown, lines

    def __len__(self) -> int:
        return len(self._items)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[T]:
        with Progress(self._what, len(self), shown=self._shown, lines=self._lines) as progress:
            for item in self._items:
                yield item
                progress.add(1)


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Within the block a terminal behind stderr says "loading PyTorch", for what has no parts to count."""
    text = f"{what} …" if _on_terminal() else ""
    if text:
        print(text, end="\r", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if text:
            print(" " * len(text), end="\r", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """`21 s`, `4 min`, `3 h 20 min`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _on_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _bar(what: str, total: int | None) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:  # an extra
        return None
    large = total is None or total >= 10_000  # 412k of 1.28M
    return tqdm(desc=what, total=total, delay=_BAR_SECONDS, leave=False, unit="", unit_scale=large, file=sys.stderr)

"""Candidates from every process, with the gradient that this needs; processes that keep in step and fail together."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

if dist.is_available():
    # Before a process group exists: this module's defaults are the group of the moment. Imported later (torch._dynamo
    # does), they keep a destroyed group's threads alive, and one that still frees a tensor while the interpreter
    # ends aborts the process (gloo, torch 2.11).
    import torch.distributed.nn

__all__ = ["gather_rows", "row_counts", "world"]

T = TypeVar("T")

_SECONDS = 1.0
"""Between two meetings of processes that keep in step."""


class ElsewhereError(RuntimeError):
    """Another process has failed, and tells of it; the message is what it tells."""


def world() -> tuple[int, int]:
    """(rank, world size) of the default process group; (0, 1) without one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def row_counts(x: Tensor) -> list[int]:
    """Rows n of x (C, n, d) in every process, in order of rank. The host waits for these few bytes.

    Raises:
        ValueError: C or d differ between processes.
    """
    own = torch.tensor([x.shape], device=x.device)
    shapes = own.new_empty(dist.get_world_size(), x.dim())
    dist.all_gather_into_tensor(shapes, own)
    by_rank: list[list[int]] = shapes.tolist()
    if any((c, d) != (x.shape[0], x.shape[2]) for c, _, d in by_rank):
        raise ValueError(f"processes must agree on heads C and width d, got shapes (C, n, d) {by_rank}")
    return [n for _, n, _ in by_rank]


def gather_rows(x: Tensor, counts: list[int] | None = None) -> Tensor:
    """Rows of all processes, (C, n, d) → (C, Σ n, d), in order of rank; n may differ between processes.

    The backward pass SUMS every process's gradient of this process's rows: each used them as candidates.

    Args:
        x: rows of this process.
        counts: `row_counts(x)`, if known already.
    """
    counts = row_counts(x) if counts is None else counts
    return _GatherRows.apply(x.transpose(0, 1), counts).transpose(0, 1)


class _GatherRows(torch.autograd.Function):
    """all_gather along dim 0, with shorter blocks padded to the longest.

    torch.distributed.nn.functional.all_gather is not used: outside NCCL its backward pass receives into
    `empty_like(gradient)`, which scrambles gradients that are dense but not contiguous (torch 2.11).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        longest = max(counts)
        blocks = x.new_empty(len(counts) * longest, *x.shape[1:])
        dist.all_gather_into_tensor(blocks, _padded(x, longest).contiguous())
        if min(counts) == longest:
            return blocks
        return torch.cat([block[:n] for block, n in zip(blocks.split(longest), counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        longest = max(ctx.counts)
        if min(ctx.counts) < longest:
            gradient = torch.cat([_padded(block, longest) for block in gradient.split(ctx.counts)])
        own = gradient.new_empty(longest, *gradient.shape[1:])
        dist.reduce_scatter_tensor(own, gradient.contiguous())
        return own[: ctx.counts[dist.get_rank()]], None


def _padded(x: Tensor, rows: int) -> Tensor:
    """`x` with zeros below it, up to `rows` rows."""
    return F.pad(x, (0, 0) * (x.dim() - 1) + (0, rows - len(x)))


def share(rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """First row of a process's part of so many, and the one after its last: in order of rank, as even as can be."""
    return rank * rows // world_size, (rank + 1) * rows // world_size


def exchange(value: Any, group: Any = None) -> list[Any]:
    """What every process of a group (None: the default one) has given, by rank: a few plain values. All call it."""
    world_size = world()[1]
    if world_size == 1:
        return [value]
    found: list[Any] = [None] * world_size
    dist.all_gather_object(found, value, group=group)
    return found


class Pace:
    """When processes meet that keep in step: after the same item in all of them, about once a second.

    A clock would tell them different items. So at each meeting they tell each other how long the longest item since the
    last one took; the longest of all says after how many they meet again. Time beside the items counts as theirs: what
    follows a long pause is one item.

    Args:
        most: items between two meetings, for should all of a sudden each take long.

    Attributes:
        items: until the next meeting.
        longest: seconds of the longest item since the last meeting, of this process.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.items = 1
        self.longest = 0.0
        self._since = time.monotonic()

    def done(self) -> bool:
        """Count an item; whether the processes meet after it."""
        now = time.monotonic()
        self.longest, self._since = max(self.longest, now - self._since), now
        self.items -= 1
        return self.items <= 0

    def met(self, longest: float) -> None:
        """Count anew, after a meeting at which the greatest `longest` of all processes was this."""
        self.items = int(min(max(_SECONDS / max(longest, 1e-6), 1), self._most))
        self.longest, self._since = 0.0, time.monotonic()


@contextmanager
def together(group: Any = None) -> Iterator[None]:
    """A block without collectives that all processes enter and leave together: where one fails, none goes on.

    Args:
        group: of all processes, whose timeout counts; None: the default one.

    Raises:
        ElsewhereError: the block has failed in another process. The first that has failed raises its own error.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    _agree(error, exchange(_message(error), group))


@contextmanager
def apart(shared: bool = True) -> Iterator[None]:
    """`together` where several processes share the work, and nothing where one does it alone.

    Args:
        shared: whether they do, if there are several.

    Raises:
        ElsewhereError: as `together`.
    """
    if not shared or world()[1] == 1:
        yield
        return
    with together():
        yield


@contextmanager
def alike() -> Iterator[None]:
    """A block that fails in all processes or in none, for the same reason: the first raises the error itself.

    Raises:
        ElsewhereError: in the other processes.
    """
    try:
        yield
    except Exception as error:
        if world()[0]:
            raise ElsewhereError(str(error)) from error
        raise


def in_step(items: Iterable[T], meet: Callable[[], object] = lambda: None, most: int = 8) -> Iterator[T]:
    """Items of this process, while other processes take theirs, however many each has.

    About once a second they meet, so that none waits for another longer than that, or than an item takes, and an error
    in one ends it in all; those that have no item left go on meeting the others. All processes call this, and take all
    items.

    Args:
        items: may fail; what takes them may not use collectives, unless all processes have equally many.
        meet: called at every meeting, in all processes; in a single one, with every item. What it raises it must raise
            in all of them.
        most: items between two meetings.

    Raises:
        ElsewhereError: another process has failed. The first that has failed raises its own error.
    """
    if world()[1] == 1:
        for item in items:
            meet()
            yield item
        return
    iterator, pace = iter(items), Pace(most)
    over = False
    while True:
        error: Exception | None = None
        while not over:
            try:
                item = next(iterator)
            except StopIteration:
                over = True
                break
            except Exception as caught:
                error = caught
                break
            yield item
            if pace.done():
                break
        met = exchange((_message(error), over, pace.longest))
        _agree(error, [message for message, *_ in met])
        meet()
        if all(ended for _, ended, _ in met):
            return
        pace.met(max(longest for *_, longest in met))


def _message(error: Exception | None) -> str | None:
    return None if error is None else str(error) or type(error).__name__


def _agree(own: Exception | None, messages: list[str | None]) -> None:
    """Raise if a process has failed."""
    failed = next((rank for rank, message in enumerate(messages) if message is not None), None)
    if failed is None:
        return
    if failed == world()[0] and own is not None:
        raise own
    raise ElsewhereError(messages[failed]) from own

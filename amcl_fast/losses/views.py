"""More than two views of an image: which of them a loss compares in pairs, and their rows with the pairs as heads."""

from collections.abc import Sequence
from typing import NamedTuple, overload

import torch
from torch import Tensor

from ..ops import checks
from ..rows import savable
from ..setting_types import written
from .inputs import heads_first

Views = Sequence[Tensor] | Tensor
"""A tensor a view, or one that holds them along its first dimension."""


class ViewPairs(NamedTuple):
    """The pairs P of views (q, t): t is a target, which the other view q attends to, and q ≠ t.

    Attributes:
        mutual: (q, t), q < t, where q is a target too: P has (t, q) as well.
        single: (q, t) where it is not.
    """

    mutual: list[tuple[int, int]]
    single: list[tuple[int, int]]

    @property
    def ordered(self) -> list[tuple[int, int]]:
        """All of P."""
        return [*self.mutual, *((t, q) for q, t in self.mutual), *self.single]

    @property
    def groups(self) -> list[tuple[list[tuple[int, int]], int]]:
        """The pairs of each kind that there are, and how often P has each: mutual ones twice."""
        return [(pairs, times) for pairs, times in ((self.mutual, 2), (self.single, 1)) if pairs]

    @property
    def sizes(self) -> list[int]:
        """How many of P each of `groups` is."""
        return [times * len(pairs) for pairs, times in self.groups]

    @property
    def are_two_views(self) -> bool:
        """Whether all is what the loss of two views compares."""
        return self.mutual == [(0, 1)] and not self.single


def view_pairs(name: str, views: Views, targets: Sequence[int] | None) -> ViewPairs:
    """The pairs of `views`, the argument `name`; `targets` None are all of them.

    Raises:
        ValueError: fewer than two views, or targets that are not views, each once.
        TypeError: either is of another kind.
    """
    check_whole(name, views)
    if not isinstance(views, Sequence | Tensor) or (isinstance(views, Tensor) and views.dim() == 0):
        raise TypeError(f"{name} must be a sequence of tensors, one a view, got {type(views).__name__}")
    count = len(views)
    if count < 2:
        raise ValueError(f"{name} must be at least two views of an image, got {count}")
    if targets is None:
        targets = range(count)
    if not isinstance(targets, Sequence) or any(type(t) is not int for t in targets):
        raise TypeError(f"targets must be a sequence of int, or None for all views, got {written(targets)}")
    if not targets or len({*targets} & {*range(count)}) < len(targets):
        raise ValueError(
            f"targets must be views from 0 to {count - 1}, each once and at least one, got {written([*targets])}"
        )
    attended = sorted(targets)
    return ViewPairs(
        [(q, t) for q in attended for t in attended if q < t],
        [(q, t) for q in range(count) if q not in attended for t in attended],
    )


def check_whole(name: str, views: Views) -> None:
    """That views which come in one tensor come in a dense one.

    Raises:
        TypeError: they do not.
    """
    if isinstance(views, Tensor):
        checks.tensor(name, views)


def by_name(**given: Views) -> dict[str, Tensor]:
    """Each view of each argument, under the name that errors give it."""
    return {f"{name}[{place}]": view for name, views in given.items() for place, view in enumerate(views)}


def views_first(**given: Views) -> list[list[Tensor]]:
    """Checked projections of views, (N, C, d) or (N, d) each, as (C, N, d): a list of each argument's."""
    heads = iter(heads_first(**by_name(**given)))
    return [[next(heads) for _ in views] for views in given.values()]


def joined(*given: tuple[Views, Sequence[Tensor]]) -> Tensor:
    """The rows of all views in one table (C, V·N, d): without a copy where one tensor holds them.

    Args:
        given: views as a loss was given them, and the same as `views_first` has them.
    """
    parts: list[Tensor] = []
    for views, heads in given:
        if isinstance(views, Tensor):
            whole = savable(views)[0].flatten(0, 1)
            parts.append((whole if whole.dim() == 3 else whole.unsqueeze(1)).transpose(0, 1))
        else:
            parts += heads
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


@overload
def as_heads(table: Tensor, views: int, rows: Sequence[Sequence[int]]) -> Tensor: ...
@overload
def as_heads(table: None, views: int, rows: Sequence[Sequence[int]]) -> None: ...
@overload
def as_heads(table: Tensor | None, views: int, rows: Sequence[Sequence[int]]) -> Tensor | None: ...
def as_heads(table: Tensor | None, views: int, rows: Sequence[Sequence[int]]) -> Tensor | None:
    """Rows of V views, (C, V·N, d), as operators read those of P pairs: (C·P, m·N, d), a pair a head; None for None.

    Slices and one `torch.cat`, so that the gradients of a view from its pairs are summed in one order.

    Args:
        table: one view after the other.
        views: V.
        rows: for each pair the m views whose rows stand below one another.
    """
    if table is None:
        return None
    parts = table.chunk(views, dim=1)
    heads, count, width = parts[0].shape
    whole = torch.cat([parts[view] for pair in rows for view in pair], dim=1)
    return whole.view(heads * len(rows), len(rows[0]) * count, width)

"""Which views are made of an image: how many, of which sizes, and how each is augmented."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from amcl_fast.data.augment import Augmentation
from amcl_fast.setting_types import whole

MOST_SIZE = 16_384
"""Side of a view, in pixels."""
MOST_VIEWS = 256
"""Views of an image: beyond it a number is a slip, and its list alone would fill the memory."""


@dataclass(frozen=True, kw_only=True)
class ViewGroup(Augmentation):
    """Some views of an image that have one size and are drawn by one `Augmentation`, whose settings these are too.

    Attributes:
        count: number of the views.
        size: side of the views, in pixels; None: that of the largest views, data.size.

    Raises:
        TypeError, ValueError: as `Augmentation`.
    """

    count: int = 1
    size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.count <= MOST_VIEWS:
            raise ValueError(f"views: count must be from 1 to {MOST_VIEWS}, got {self.count}")
        if self.size is not None:
            whole("views: size", self.size, 1, MOST_SIZE)

    @property
    def augmentation(self) -> Augmentation:
        """How each of the views is augmented."""
        return Augmentation(**{field.name: getattr(self, field.name) for field in fields(Augmentation)})


def training_views(views: Sequence[Augmentation] | int, size: int, letters: str) -> list[Augmentation]:
    """`each_view` of data.views, which may be a number: then data.augmentation has the letters of all of them.

    Raises:
        ValueError: as `each_view`, or fewer than two views.
    """
    same = Augmentation.from_letters(letters)
    entries = [] if isinstance(views, int) else each_view(views, size)
    number = views if isinstance(views, int) else len(entries)
    if not 2 <= number <= MOST_VIEWS:
        raise ValueError(f"views must be at least 2 and at most {MOST_VIEWS}, got {number}")
    return entries or [same] * number


def each_view(views: Sequence[Augmentation], size: int) -> list[Augmentation]:
    """One entry a view, an `Augmentation` where it has `size`, a `ViewGroup` of one where it is smaller.

    Args:
        views: groups, or single views by their augmentation.
        size: side of the largest views, in pixels.

    Raises:
        ValueError: other entries than these, or the largest views have another size.
    """
    entries: list[Augmentation] = []
    if not isinstance(views, Sequence):
        raise ValueError(f"views must be a number, ViewGroups or Augmentations, got {views!r}")
    for view in views:
        if not isinstance(view, Augmentation):
            raise ValueError(f"views must be a number, ViewGroups or Augmentations, got {view!r} among them")
        group = view if isinstance(view, ViewGroup) else ViewGroup(**vars(view))
        own = group.augmentation
        entries += [own if group.size in (None, size) else ViewGroup(**vars(own), size=group.size)] * group.count
    largest = max((side(view, size) for view in entries), default=size)
    if largest != size:
        raise ValueError(f"views must have data.size, {size}, as their largest size, got {largest}")
    return entries


def side(view: Augmentation, size: int) -> int:
    """Side in pixels of an entry of `each_view`, where the largest views have `size`."""
    return getattr(view, "size", None) or size


def shorter_side(views: Sequence[Augmentation], size: int) -> float:
    """Pixels of its shorter side that an image must keep: as many as the smallest crop of each view shows."""
    return max(side(view, size) / view.least_share for view in views)

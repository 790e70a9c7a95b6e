"""The largest images of a data set: of how many bytes and pixels a batch can be at most.

Neither torch nor numpy is imported here.
"""

import heapq
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

KEPT = 1024
"""Images that are remembered: a batch of more counts the others as large as the last of them."""


class Largest(NamedTuple):
    """Those of some images, each list falling.

    Attributes:
        pixels: of the `KEPT` images that have most, 0 where that is not known.
        bytes: of the `KEPT` images that have most.
    """

    pixels: Sequence[int]
    bytes: Sequence[int]

    @classmethod
    def of(cls, pixels: Iterable[int], sizes: Iterable[int]) -> Self:
        """Those of images of so many pixels and bytes."""
        return cls(heapq.nlargest(KEPT, pixels), heapq.nlargest(KEPT, sizes))

    @classmethod
    def joined(cls, parts: "Iterable[Largest]") -> Self:
        """Those of all parts together."""
        parts = list(parts)
        return cls.of((many for part in parts for many in part.pixels), (many for part in parts for many in part.bytes))

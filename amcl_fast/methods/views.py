"""The views of a batch: which of them others attend to, and images of one size together."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Images(NamedTuple):
    """Images of all views.

    Attributes:
        of_size: (m·n, 3, H, W) of every size: m views of n images, one after the other.
        places: of each size, which views these are.
    """

    of_size: list[Tensor]
    places: list[list[int]]

    @property
    def order(self) -> list[int]:
        """The views in the order in which `of_size` has them."""
        return [place for places in self.places for place in places]


def by_size(views: Sequence[Tensor]) -> Images:
    """Images of views (n, 3, H, W), those of one size in one tensor."""
    places: dict[torch.Size, list[int]] = {}
    for place, view in enumerate(views):
        places.setdefault(view.shape, []).append(place)
    together = [torch.cat([views[p] for p in of]) if len(of) > 1 else views[of[0]] for of in places.values()]
    return Images(together, list(places.values()))


def targets_of(views: Sequence[Tensor]) -> list[int]:
    """Places of the views that the others attend to: those of the largest size."""
    largest = max((view.shape[2:] for view in views), key=math.prod)
    return [place for place, view in enumerate(views) if view.shape[2:] == largest]

"""Barlow Twins and AMCL-Barlow Twins (arXiv 2103.03230; paper, Eq. 1.3 and 2.3)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import gather_rows, world
from ..losses import BarlowTwinsLoss
from .base import Method
from .pairs import MOST_ANCHORS, Pairs, pairs_of
from .views import targets_of


class BarlowTwins(Method):
    """The channels of two views' projections correlate with themselves and not with one another.

    Of more views every pair of one and a target, the mean of them all.

    An adaptive temperature reads channel vectors, as long as the global batch: its `dim` must be
    data.batch_size. The loader drops the last partial batch of an epoch, so that all batches have that size.

    Args:
        criterion: `BarlowTwinsLoss` with a constant temperature (Barlow Twins) or an adaptive one. Its
            `gather` makes the correlation that of the global batch; an adaptive temperature needs it with
            several processes.
        kwargs: see `Method`.
    """

    criterion: BarlowTwinsLoss

    def __init__(self, criterion: BarlowTwinsLoss, **kwargs: Any) -> None:
        super().__init__(criterion, **kwargs)

    def check_batch(self, batch_size: int, target_views: int = 2) -> None:
        adaptive = self.criterion.adaptive
        if adaptive is not None and adaptive.dim != batch_size:
            raise ValueError(
                f"temperature.dim must be data.batch_size = {batch_size} with Barlow Twins, where φ reads channel "
                f"vectors of the whole batch, got {adaptive.dim}; leave temperature.dim out, and it is data.batch_size"
            )

    def loss(self, views: Sequence[Tensor]) -> Tensor:
        return self.criterion.of_views(self.projections(views), targets_of(views))

    def pairs(self, views: Sequence[Tensor]) -> Pairs:
        """As `Method.pairs`; a pair is two channels, its similarity their correlation coefficient."""
        gathers = self.criterion.gather and world()[1] > 1
        x, y = (
            (gather_rows(z.float().transpose(0, 1)) if gathers else z.float().transpose(0, 1)).mT[:, :MOST_ANCHORS]
            for z in self.encode(views, self.embed)
        )
        own = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        return pairs_of(x, y, self.criterion.temperature, ~own, similar=(_centred(x), _centred(y)))


def _centred(x: Tensor) -> Tensor:
    return F.normalize(x - x.mean(-1, keepdim=True), dim=-1)

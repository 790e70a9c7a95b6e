"""SimCLR and AMCL-SimCLR (paper, Eq. 1.1 and 2.1)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..losses import SimCLRLoss
from .base import Method
from .pairs import MOST_ANCHORS, Pairs, normalised_rows, pairs_of
from .views import targets_of


class SimCLR(Method):
    """Two views of an image are each other's positives; both views of all other images of the batch are the negatives.

    Of more views every pair of one and a target, the mean of them all.

    With accumulation (`accumulate_grad_batches`), gradients of several batches are summed; the
    negatives of a batch remain its own.

    Args:
        criterion: `SimCLRLoss` with a constant temperature (SimCLR) or an adaptive one (AMCL-SimCLR).
        kwargs: see `Method`.
    """

    criterion: SimCLRLoss

    def __init__(self, criterion: SimCLRLoss, **kwargs: Any) -> None:
        super().__init__(criterion, **kwargs)

    def loss(self, views: Sequence[Tensor]) -> Tensor:
        return self.criterion.of_views(self.projections(views), targets_of(views))

    def pairs(self, views: Sequence[Tensor]) -> Pairs:
        z1, z2 = (normalised_rows(z) for z in self.encode(views, self.embed))
        x, y = z1[:, :MOST_ANCHORS], torch.cat([z2, z1], dim=1)
        own = torch.eye(z1.shape[1], dtype=torch.bool, device=z1.device)[:MOST_ANCHORS]
        taken = self.criterion.top_k or y.shape[1]
        return pairs_of(x, y, self.criterion.temperature, ~torch.cat([own, own], dim=1), taken=taken)

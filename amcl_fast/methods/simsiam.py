"""SimSiam and AMCL-SimSiam (arXiv 2011.10566; paper, Eq. 1.2 and 2.2)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..losses import SimSiamLoss
from ..models import MultiHeadPredictor
from ..setting_types import check_value, real
from .base import Method, share_of_mean
from .pairs import MOST_ANCHORS, Pairs, normalised_rows, pairs_of
from .views import targets_of


class SimSiam(Method):
    """A predictor's output for one view aligns with the projection of another; there are no negatives.

    Of more than two views every one with every target, the mean of them all.

    Args:
        criterion: `SimSiamLoss` with a constant temperature (SimSiam) or an adaptive one (AMCL-SimSiam).
        predictor_hidden_dim: hidden width of the predictor, per head.
        predictor_lr: constant learning rate of the predictor, which the schedule leaves alone (SimSiam,
            Section 4.1); None: as everything else.
        kwargs: see `Method`.
    """

    criterion: SimSiamLoss

    def __init__(
        self,
        criterion: SimSiamLoss,
        *,
        predictor_hidden_dim: int = 512,
        predictor_lr: float | None = None,
        **kwargs: Any,
    ) -> None:
        check_value("predictor_hidden_dim", predictor_hidden_dim, int)
        if predictor_lr is not None:
            real("predictor_lr", predictor_lr, 0)
        super().__init__(criterion, **kwargs)
        self.predictor = MultiHeadPredictor(self.projector.heads, self.projector.dim, predictor_hidden_dim)
        self._predict = self.compiled(self.predictor.forward)
        if predictor_lr is not None:
            self.constant_lr = {"predictor": predictor_lr}

    def loss(self, views: Sequence[Tensor]) -> Tensor:
        z = self.projections(views)
        p = self._predict(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        loss = self.criterion.of_views(p, z, targets_of(views))
        return share_of_mean(len(views[0]), loss) * loss

    def pairs(self, views: Sequence[Tensor]) -> Pairs:
        z1, z2 = self.encode(views, self.embed)
        n = len(z1)
        x, y = normalised_rows(self.predictor(torch.cat([z1, z2]))[:n][:MOST_ANCHORS]), normalised_rows(z2)
        own = torch.eye(n, dtype=torch.bool, device=z1.device)[:MOST_ANCHORS]
        return pairs_of(x, y, self.criterion.temperature, ~own)

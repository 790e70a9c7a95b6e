"""SimCLR and AMCL-SimCLR (paper, Eq. 1.1 and 2.1)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..losses import SimCLRLoss
from .base import Method, outside_autocast


class SimCLR(Method):
    """Two views of every image, through one pass of the encoder; the other images are the negatives.

    With accumulation (`accumulate_grad_batches`), gradients of several batches are summed; the
    negatives of a batch remain its own.

    Args:
        criterion: `SimCLRLoss` with a constant temperature (SimCLR) or an adaptive one (AMCL-SimCLR).
        kwargs: see `Method`.
    """

    criterion: SimCLRLoss

    def __init__(self, criterion: SimCLRLoss, **kwargs: Any) -> None:
        super().__init__(criterion, **kwargs)

    def contrast(self, views: Sequence[Tensor]) -> Tensor:
        if len(views) != 2:
            raise ValueError(f"SimCLR contrasts two views of an image, got {len(views)}; set data.views to 2")
        z1, z2 = self.encode_views(torch.cat(list(views))).chunk(2)
        with outside_autocast(z1.device):
            return self.criterion(z1.float(), z2.float())

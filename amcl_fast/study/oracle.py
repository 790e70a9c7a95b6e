"""The label oracle: SimCLR's and MoCo's loss without the negatives that are of the anchor's own class.

How much a temperature, or a choice of negatives, could gain that knew which negatives are false.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import gather_rows, world
from ..losses import MoCoLoss, SimCLRLoss
from ..losses.views import Views
from ..reference import Stats
from ..rows import Prepared

if TYPE_CHECKING:
    from ..losses.contrast import Anchored, Contrast
else:
    Contrast = object

_AWAY = 8.0
"""Squared, what similarities of the same class lose: e^((2 − 64)/τ) of a weight is left, for τ up to 1 nothing."""

LARGEST_TAU = 1.0

_WIDTH = 16
"""Widths of rows are a multiple of it, as kernels like them."""


class _Oracle(Contrast):
    """A contrast whose rows have a class beside them.

    To the rows of anchors −8 is added in a dimension of their class, to those of candidates +8: similarities within a
    class lose 64, so that no form of the loss, on any backend, gives them a weight, and none of them is among the κ
    hardest while there are κ others. The positives are compared apart, and stay.

    Attributes:
        labels: (n,) int64 of the images of the batch; set before each call.
        queue_labels: (K,) int64 of the keys of a queue, −1 for none.
        classes: how many there are.
    """

    labels: Tensor | None = None
    queue_labels: Tensor | None = None
    classes: int = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.temperature, float) or self.temperature > LARGEST_TAU:
            raise ValueError(
                f"temperature must be a constant of at most {LARGEST_TAU:g} with the label oracle, got "
                f"{self.temperature}"
            )

    def _labels_of(self, anchors: int, candidates: int) -> tuple[Tensor, Tensor]:
        """Classes of both."""
        raise NotImplementedError

    def _evaluate(
        self,
        rows: Prepared,
        phi: Prepared,
        candidates: Tensor,
        phi_candidates: Tensor | None,
        weight: float,
        *,
        mutual: bool = True,
        anchored: "Anchored | None" = None,
    ) -> tuple[Tensor, Stats, Stats]:
        anchors = rows.product
        assert anchors is not None
        own, others = self._labels_of(anchors.shape[1], candidates.shape[1])
        if self.top_k is not None:
            self._check_others(own, others)
        rows = rows._replace(product=self._with_class(anchors, own, -_AWAY))
        candidates = self._with_class(candidates, others, _AWAY)
        return super()._evaluate(rows, phi, candidates, phi_candidates, weight, mutual=mutual, anchored=anchored)

    def _check_others(self, own: Tensor, others: Tensor) -> None:
        counts = torch.bincount(others[others >= 0], minlength=self.classes)
        fewest = len(others) - int(counts[own].max())
        if self.top_k is not None and self.top_k > fewest:
            raise ValueError(
                f"top_k must be at most {fewest}, the negatives of other classes that an anchor has, with the label "
                f"oracle, got {self.top_k}"
            )

    def _with_class(self, rows: Tensor, labels: Tensor, value: float) -> Tensor:
        """Rows (C, R, d) with their class beside them."""
        width = self.classes + -(rows.shape[2] + self.classes) % _WIDTH
        places = F.one_hot(labels.clamp(min=0), width) * (labels >= 0).unsqueeze(1)
        beside = (places * value).to(rows)
        return torch.cat([rows, beside.expand(len(rows), -1, -1)], dim=2)


class SimCLROracle(_Oracle, SimCLRLoss):
    """`SimCLRLoss` without negatives of the anchor's own class; of two views, with a constant temperature."""

    def of_views(self, views: Views, targets: Sequence[int] | None = None) -> Tensor:
        _refuse_more(len(views), len(views) if targets is None else len(targets))
        return super().of_views(views, targets)

    def _labels_of(self, anchors: int, candidates: int) -> tuple[Tensor, Tensor]:
        assert self.labels is not None
        own = self.labels.repeat(2)
        if not self.gather or world()[1] == 1:
            return own, own
        of_all = gather_rows(own.double().view(1, -1, 1)).flatten().long()
        return own, of_all


class MoCoOracle(_Oracle, MoCoLoss):
    """`MoCoLoss` without keys of the anchor's own class; of two views, with a constant temperature."""

    def of_views(self, queries: Views, keys: Views, queue: Tensor, targets: Sequence[int] | None = None) -> Tensor:
        _refuse_more(len(queries), len(keys))
        return super().of_views(queries, keys, queue, targets)

    def _labels_of(self, anchors: int, candidates: int) -> tuple[Tensor, Tensor]:
        assert self.labels is not None and self.queue_labels is not None
        return self.labels.repeat(4), self.queue_labels


def _refuse_more(views: int, targets: int) -> None:
    if (views, targets) != (2, 2):
        raise ValueError(
            f"data.views must be two of one size with the label oracle, got {views}, of which {targets} of the largest "
            "size"
        )


class Labels(L.Callback):
    """Tells an oracle the classes of each batch, and keeps those of the keys in MoCo's queue.

    Raises:
        ValueError: the criterion is none, or data.views are others than two of one size.
    """

    def __init__(self) -> None:
        self._queue: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"queue": self._queue}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._queue = state_dict["queue"]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not isinstance(pl_module.criterion, _Oracle):
            raise ValueError(
                "model.criterion must be one that takes labels where amcl_fast.study.oracle.Labels is a callback, got "
                f"{type(pl_module.criterion).__name__}"
            )
        data = trainer.datamodule  # type: ignore[attr-defined]
        _refuse_more(len(data.views), data.target_views)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        criterion = pl_module.criterion
        criterion.labels = batch[1].to(pl_module.device)
        criterion.classes = trainer.datamodule.num_classes  # type: ignore[attr-defined]
        if isinstance(criterion, MoCoOracle):
            if self._queue is None:
                self._queue = torch.full((pl_module.queue.keys.shape[1],), -1)
            self._queue = criterion.queue_labels = self._queue.to(pl_module.device)

    def on_after_backward(self, trainer: L.Trainer, pl_module: Any) -> None:
        # The module's own hook comes after this, and puts the keys in the queue.
        criterion = pl_module.criterion
        if self._queue is None or criterion.labels is None:
            return
        labels = criterion.labels.repeat(2)
        if world()[1] > 1:
            labels = gather_rows(labels.double().view(1, -1, 1)).flatten().long()
        places = pl_module.queue.written + torch.arange(len(labels), device=labels.device)
        self._queue[places % len(self._queue)] = labels

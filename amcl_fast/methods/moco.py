"""MoCo and AMCL-MoCo (arXiv 1911.05722, 2003.04297; paper, Eq. 1.1 and 2.1)."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..distributed import gather_rows, row_counts, world
from ..losses import MoCoLoss
from ..models import KeyQueue, MomentumEncoder
from ..setting_types import check_value
from .base import Method, share_of_mean
from .pairs import MOST_ANCHORS, Pairs, normalised_rows, pairs_of
from .views import by_size, targets_of


class MoCo(Method):
    """Queries of one view, keys of another by a momentum encoder; the negatives are a queue of older keys.

    Symmetric: both views are queries and keys. Of more than two all are queries, and those of the largest size are keys
    too: the momentum encoder reads them alone. It follows after every optimiser step, which with MoCo's own order
    (before the keys are computed) makes the same keys. Keys join the queue after the backward pass, since φ learns from
    the queue; those of all processes join on every process, in order of rank.

    Several processes: keys whose BatchNorm saw the queries of the same images would give the answer away, so
    use either `shuffle_batch_norm` or the trainer's sync_batchnorm.

    Args:
        criterion: `MoCoLoss` with a constant temperature (MoCo) or an adaptive one (AMCL-MoCo).
        queue_size: keys K per head, at least those of a global batch: of two views, or of all of the largest size.
        momentum: of the momentum encoder.
        momentum_schedule: `constant`, or `cosine`: from `momentum` to 1 over the training, in step s of S it is
            1 - (1 - momentum)·(1 + cos(π s/S))/2 (MoCo v3).
        shuffle_batch_norm: encode keys in an order that is shuffled over all processes (MoCo, Section 3.3);
            without effect in one process.
        kwargs: see `Method`.
    """

    criterion: MoCoLoss

    def __init__(
        self,
        criterion: MoCoLoss,
        *,
        queue_size: int = 4096,
        momentum: float = 0.99,
        momentum_schedule: Literal["constant", "cosine"] = "constant",
        shuffle_batch_norm: bool = False,
        **kwargs: Any,
    ) -> None:
        check_value("queue_size", queue_size, int)
        check_value("momentum", momentum, float)
        super().__init__(criterion, **kwargs)
        self.key_encoder = MomentumEncoder(self.backbone, self.projector, momentum=momentum)
        if momentum_schedule not in ("constant", "cosine"):
            raise ValueError(f"momentum_schedule must be 'constant' or 'cosine', got {momentum_schedule!r}")
        self.momentum, self.momentum_schedule = momentum, momentum_schedule
        self.queue = KeyQueue(self.projector.heads, queue_size, self.projector.dim)
        self.shuffle_batch_norm = shuffle_batch_norm
        self._encode_keys = self.compiled(self.key_encoder.forward)
        self._keys: Tensor | None = None
        # DDP would send the whole queue from rank 0 before every step; it is equal everywhere by construction.
        self._ddp_params_and_buffers_to_ignore = ["queue.keys"]

    def check_batch(self, batch_size: int, target_views: int = 2) -> None:
        if self.queue.keys.shape[1] < target_views * batch_size:
            raise ValueError(
                f"model.queue_size must hold the keys of the largest views of a batch, {target_views} · {batch_size} "
                f"with this data.batch_size, got {self.queue.keys.shape[1]}"
            )

    def loss(self, views: Sequence[Tensor]) -> Tensor:
        images, targets = by_size(views), targets_of(views)
        queries = self.projections(images)
        attended = images.of_size[images.places.index(targets)]
        with torch.no_grad():
            keys = normalised_rows(self._shuffled(attended) if self._shuffles else self._encode_keys(attended))
        self._keys = keys
        k = keys.to(self.queue.keys.dtype).transpose(0, 1).unflatten(0, (len(targets), len(views[0])))
        loss = self.criterion.of_views(queries.to(k.dtype), k, self.queue.keys.mT, targets)
        return share_of_mean(len(views[0]), loss) * loss

    def on_after_backward(self) -> None:
        assert self._keys is not None
        self.queue.enqueue(gather_rows(self._keys) if world()[1] > 1 else self._keys)
        self._keys = None

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.momentum_schedule == "cosine":
            done = (self.trainer.global_step + 1) / self.trainer.estimated_stepping_batches
            self.key_encoder.momentum = 1 - (1 - self.momentum) * (1 + math.cos(math.pi * done)) / 2
        self.key_encoder.update(self.backbone, self.projector)

    def pairs(self, views: Sequence[Tensor]) -> Pairs:
        n = len(views[0])
        x = normalised_rows(self.encode(views, self.embed)[0][:MOST_ANCHORS])
        step = -(-self.queue.keys.shape[1] // MOST_ANCHORS)
        # Batch normalisation of the key encoder sees the views that have keys.
        attended = torch.cat([views[place] for place in targets_of(views)])
        keys = normalised_rows(self.key_encoder(attended)[-n:])
        y = torch.cat([keys, self.queue.keys[:, ::step].to(keys.dtype)], dim=1)
        negative = torch.arange(y.shape[1], device=x.device) >= n
        top_k = self.criterion.top_k
        return pairs_of(
            x,
            y,
            self.criterion.temperature,
            negative.expand(x.shape[1], -1),
            taken=top_k or y.shape[1],
            pool=self.queue.keys.to(keys.dtype) if top_k and step > 1 else None,
        )

    @property
    def _shuffles(self) -> bool:
        return self.shuffle_batch_norm and world()[1] > 1

    def _shuffled(self, images: Tensor) -> Tensor:
        """Keys (n, C, d) of this process's images, each encoded by a process drawn at random."""
        rank, _ = world()
        flat = images.flatten(1).unsqueeze(0)
        counts = row_counts(flat)
        everyone = gather_rows(flat, counts).squeeze(0).unflatten(1, images.shape[1:])
        # Every process draws the same order, also after a resume.
        order = torch.randperm(len(everyone), generator=torch.Generator().manual_seed(self.queue.written))
        drawn = everyone[order.split(counts)[rank].to(images.device)]
        keys = self._encode_keys(drawn.contiguous(memory_format=torch.channels_last))
        own = order.argsort().split(counts)[rank].to(images.device)
        return gather_rows(keys.transpose(0, 1), counts).transpose(0, 1)[own]

"""What all frameworks share: encoder, heads, optimiser, schedule, precision of the loss, logging."""

from collections.abc import Sequence

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from ..models import BackboneConfig, MultiHeadProjector, ProjectorConfig, build_backbone
from ..optim import OptimizerConfig, ScheduleConfig, build_optimizer, build_scheduler
from ..steps import at_logging_step

Batch = tuple[Sequence[Tensor], Tensor]


class Method(L.LightningModule):
    """A framework of contrastive learning. A subclass gives `contrast`.

    A batch is (views, labels): a sequence of tensors (n, 3, H, W), and (n,) int64 that training ignores.

    Args:
        criterion: loss of the framework; its `last_stats` are logged.
        backbone: encoder.
        projector: heads.
        optimizer: optimiser of everything that learns, φ included.
        schedule: learning-rate schedule.
        compile: run encoder and heads through torch.compile in training.

    Attributes:
        backbone: images (n, 3, H, W) to features (n, feature_dim).
        projector: features to projections (n, C, d).
    """

    def __init__(
        self,
        criterion: nn.Module,
        *,
        backbone: BackboneConfig = BackboneConfig(),  # noqa: B008
        projector: ProjectorConfig = ProjectorConfig(),  # noqa: B008
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.criterion = criterion
        self.backbone = build_backbone(backbone)
        self.projector = MultiHeadProjector(self.backbone.feature_dim, projector)  # type: ignore[arg-type]
        self.optimizer_config = optimizer
        self.schedule_config = schedule
        # Evaluation meets other batch sizes, for which a compiled graph would be built again: it stays eager.
        self.encode_views = torch.compile(self.embed) if compile else self.embed
        self._lr = optimizer.lr
        self._gradient_norm: Tensor | None = None

    def embed(self, images: Tensor) -> Tensor:
        """Projections (n, C, d) of images (n, 3, H, W)."""
        return self.projector(self.backbone(images))

    def contrast(self, views: Sequence[Tensor]) -> Tensor:
        """Loss (0-dim) of one batch of views. Called under autocast; the criterion must not be."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it contrasts views")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        return self.contrast(batch[0])

    def on_train_batch_end(self, outputs: dict[str, Tensor], batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        # Lightning's `log` costs as much as a small model's step and copies to the host: only when it is due.
        if at_logging_step(self.trainer):
            self.log("loss", outputs["loss"], prog_bar=True)
            self.log_dict({"lr": self._lr, **self.criterion.last_stats})  # type: ignore[dict-item, arg-type]
            if self._gradient_norm is not None:
                self.log("gradient_norm", self._gradient_norm)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if self._scales_gradients or not gradient_clip_val or gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            # Lightning refuses to clip beside a fused optimiser under any mixed precision; only a gradient
            # scaler is in the way.
            self._gradient_norm = nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val, foreach=True)

    @property
    def _scales_gradients(self) -> bool:
        return getattr(self.trainer.precision_plugin, "scaler", None) is not None

    def configure_optimizers(self) -> OptimizerLRScheduler:
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError("the schedule needs an end: set trainer.max_epochs or trainer.max_steps")
        clips_scaled = self._scales_gradients and bool(self.trainer.gradient_clip_val)
        optimizer = build_optimizer(self, self.optimizer_config, fused=not clips_scaled)
        per_epoch = -(-self.trainer.num_training_batches // self.trainer.accumulate_grad_batches)
        scheduler = build_scheduler(
            optimizer, self.schedule_config, steps=int(steps), epochs=-(-int(steps) // int(per_epoch))
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": self.schedule_config.interval},
        }


def outside_autocast(device: torch.device) -> torch.autocast:
    """Context for losses: 1/τ multiplies every rounding, so they are never evaluated in half precision."""
    return torch.autocast(device.type, enabled=False)

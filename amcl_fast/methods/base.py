"""What all frameworks share: encoder, heads, optimiser, schedule, precision of the loss, logging."""

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from ..distributed import exchange, world
from ..losses import NonFiniteInputError
from ..models import BackboneConfig, MultiHeadProjector, ProjectorConfig, build_backbone
from ..models.modes import floating_dtype, untracked
from ..models.sizes import check_sizes
from ..optim import (
    OptimizerConfig,
    ScheduleConfig,
    build_optimizer,
    build_scheduler,
    check_temperature,
    layer_shares,
    lr_scale,
)
from ..temperature import PerplexityTemperature
from .pairs import Pairs
from .trainer import NonFiniteError, at_logging_step, logs_next_step, stepped
from .views import Images, by_size, targets_of

Batch = tuple[Sequence[Tensor], Tensor]

if TYPE_CHECKING:
    Backbone = BackboneConfig | nn.Module
else:
    Backbone = BackboneConfig  # the command line has settings alone

# Of version 0.1.0; a subclass's own would never be called.
_RENAMED = {"contrast": "loss_of_views", "temperatures": "pairs_of_views"}


class Method(L.LightningModule):
    """A framework of contrastive learning. A subclass gives `loss` and `pairs`.

    A batch is (views, labels): tensors (n, 3, H, W), one for each of V ≥ 2 views, and (n,) int64 that training ignores.
    Views of one size pass the encoder together and all of them the heads, so BatchNorm sees them at once. Views may
    have several sizes: then the others attend to the largest alone (`targets_of`).

    Args:
        criterion: loss of the framework; its `last_stats` are logged.
        backbone: encoder; a torch.nn.Module of one's own too, images (n, 3, H, W) to features (n, D).
        projector: heads.
        optimizer: optimiser of everything that learns, φ included.
        schedule: learning-rate schedule.
        compile: run encoders and heads through torch.compile in training.

    Attributes:
        backbone: images (n, 3, H, W) to features (n, feature_dim).
        projector: features to projections (n, C, d).
        backbone_config: what the encoder is built of; None: a module of one's own.
        constant_lr: learning rates that no schedule changes, by prefix of the parameters' names.
        parts: terms of the latest loss by name, which are logged beside it; none but where a subclass has some.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for old, new in _RENAMED.items():
            if hasattr(cls, old):
                raise TypeError(f"{cls.__name__}.{old} must be named {new}, got the name of version 0.1.0")

    def __init__(
        self,
        criterion: nn.Module,
        *,
        backbone: Backbone = BackboneConfig(),  # noqa: B008
        projector: ProjectorConfig = ProjectorConfig(),  # noqa: B008
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.criterion = criterion
        self.backbone = build_backbone(backbone)
        self.backbone_config = backbone if isinstance(backbone, BackboneConfig) else None
        self.projector = MultiHeadProjector(self.backbone.feature_dim, projector)  # type: ignore[arg-type]
        if isinstance(temperature := getattr(criterion, "temperature", None), PerplexityTemperature):
            temperature.check_heads(self.projector.heads)
        check_temperature(criterion, optimizer)
        self.optimizer_config = optimizer
        self.schedule_config = schedule
        if optimizer.layer_decay is not None:
            layer_shares(self.backbone, optimizer.layer_decay)  # refused here, and not after the first measurements
        self.constant_lr: dict[str, float] = {}
        self.parts: dict[str, Tensor] = {}
        self._compile = compile
        # Evaluation meets other batch sizes, for which a compiled graph would be built again: it stays eager.
        self.encode_views = self.compiled(self.embed)
        self._lr = optimizer.lr
        self._losses: list[dict[str, Tensor]] = []  # of the batches of an optimiser step, with their parts
        self._step_is_over = False
        self._gradient_norm: Tensor | None = None
        self._logged_step: int | None = None
        self._first = True  # the next batch is the first of a training

    def embed(self, *images: Tensor) -> Tensor:
        """Projections (n, C, d) of images (n, 3, H, W), or of several sizes of them, one after the other."""
        features = [self.backbone(of_one_size) for of_one_size in images]
        return self.projector(features[0] if len(features) == 1 else torch.cat(features))

    def encode(self, views: Sequence[Tensor], embed: Callable[..., Tensor] | None = None) -> list[Tensor]:
        """Projections (n, C, d) of each view; the encoder runs once for each size, the heads once.

        Args:
            views: (n, 3, H, W) each.
            embed: what makes projections of the images; None: `embed` as training runs it.
        """
        return list(self.projections(views, embed))

    def projections(self, views: Sequence[Tensor] | Images, embed: Callable[..., Tensor] | None = None) -> Tensor:
        """`encode` in one tensor (V, n, C, d), which is what the heads have made unless sizes alternate.

        Args:
            views: as there; or `by_size` of them, for who needs the images together as well.
            embed: as there.
        """
        images = views if isinstance(views, Images) else by_size(views)
        z = (embed or self.encode_views)(*images.of_size)
        order = images.order
        z = z.unflatten(0, (len(order), len(z) // len(order)))
        in_order = order == sorted(order)
        return z if in_order else torch.stack([z[order.index(place)] for place in range(len(order))])

    @staticmethod
    def two_of(views: Sequence[Tensor]) -> tuple[int, int]:
        """Places of the two views (n, 3, H, W) that a look at the pairs takes; others attend to the second one.

        The first two of the largest size, or, where one alone has it, the first of the others and that one.
        """
        targets = targets_of(views)
        return (targets[0], targets[1]) if len(targets) > 1 else (int(targets[0] == 0), targets[0])

    def compiled(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`function` as training runs it: through torch.compile if that is asked for."""
        return torch.compile(function) if self._compile else function

    def loss(self, views: Sequence[Tensor]) -> Tensor:
        """Loss (0-dim) of views (n, 3, H, W) of the weights' type."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its loss is")

    def pairs(self, views: Sequence[Tensor]) -> Pairs:
        """Similarity and temperature of the pairs that the loss forms of two views (n, 3, H, W).

        Others attend to the second one, and to the first if it is of the same size.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say which pairs it forms")

    def pictures(self, views: Sequence[Tensor]) -> dict[str, Tensor]:
        """What a framework makes of the images of the first view, by name: (n, 3, H, W), normalised as they are."""
        return {}

    def check_batch(self, batch_size: int, target_views: int = 2) -> None:
        """Raise ValueError if the framework's settings do not fit the global batch size.

        Args:
            batch_size: images of all processes.
            target_views: how many views of an image others attend to.
        """

    def check_sizes(self, sizes: Iterable[int]) -> None:
        """Raise ValueError if the framework cannot take images of each of several sizes, their sides in pixels."""
        check_sizes(self.backbone, sizes)

    def loss_of_views(self, views: Sequence[Tensor]) -> Tensor:
        """Loss (0-dim) of the views of a batch.

        Raises:
            ValueError: fewer than two views, or views of different numbers of images.
        """
        return self.loss(self._checked(views))

    def pairs_of_views(self, views: Sequence[Tensor]) -> Pairs:
        """A look at the pairs that two views of one batch form (`two_of`), in the present mode.

        The module stays as it is. Anchors are of the first of the two, at most 512. Normalisation over the batch sees
        these two views alone. Raises ValueError as `loss_of_views`.
        """
        checked = self._checked(views)
        with torch.no_grad(), untracked(self):
            return self.pairs([checked[place] for place in self.two_of(checked)])

    def pictures_of_views(self, views: Sequence[Tensor]) -> dict[str, Tensor]:
        """`pictures` of a batch of views, in the present mode; the module stays as it is."""
        with torch.no_grad(), untracked(self):
            return self.pictures(self._checked(views))

    def _checked(self, views: Sequence[Tensor]) -> list[Tensor]:
        if len(views) < 2:
            raise ValueError(f"views must be at least two views of an image, got {len(views)}")
        if len({len(view) for view in views}) > 1:
            raise ValueError(f"views must be of the same images, got {', '.join(str(len(view)) for view in views)}")
        # Views may be float16, a look at the pairs brings its own; autocast to bfloat16 joins no float16.
        return [view.to(floating_dtype(self.backbone)) for view in views]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Lightning converts the weights of 64-true after it has loaded them: they would be rounded to float32.
        if self._trainer is not None and self.trainer.precision_plugin.precision == "64-true":
            self.double()

    def on_train_start(self) -> None:
        # Of a training before that was broken off within a step.
        self._losses.clear()
        self._step_is_over = False
        self._gradient_norm = self._logged_step = None
        self._first = True
        rank, processes = world()
        if processes > 1:
            # Lightning seeds all processes alike: their images would have the same masks, noise and dropped paths.
            torch.manual_seed(torch.initial_seed() + rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        try:
            if self._first:
                self._check_first(batch)
            loss = self.loss_of_views(batch[0])
        except NonFiniteInputError as error:
            raise NonFiniteError(self.trainer, f"the loss is not finite: {error}") from error
        if self._step_is_over:
            self._losses.clear()
            self._step_is_over = False
        self._losses.append({"loss": loss.detach(), **self.parts})
        return loss

    def _check_first(self, batch: Any) -> None:
        """See that batches of any loader are (views, labels), and that the framework's settings fit their size."""
        self._first = False
        views = batch[0] if isinstance(batch, tuple | list) and batch else batch
        if not isinstance(views, tuple | list) or not all(
            isinstance(view, Tensor) and view.ndim == 4 for view in views
        ):
            got = f"a tensor {tuple(views.shape)}" if isinstance(views, Tensor) else type(views).__name__
            raise ValueError(
                f"batches must be (views, labels), views a list of tensors (n, 3, H, W), got {got} as views"
            )
        if len(views) > 1:
            self.check_batch(sum(exchange(len(views[0]))), len(targets_of(views)))

    def on_train_batch_end(self, outputs: dict[str, Tensor], batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        self.log_step()
        self._step_is_over = stepped(self.trainer)
        if self.trainer.should_stop and not at_logging_step(self.trainer):
            # Lightning would log the values of an earlier step once more.
            for metric in self.trainer._results.values():  # type: ignore[union-attr]
                metric._forward_cache = None

    def log_step(self) -> None:
        """Log the metrics of the optimiser step that was just done, once; a callback that saves it calls this before.

        The loss and its parts are means over the batches of the step (`accumulate_grad_batches`); Lightning hands on
        each one's divided by their number. The criterion's `last_stats` are those of the last batch.

        Beside them is `gradient_norm`, of the whole gradient before it is clipped.
        """
        # Lightning's `log` costs as much as a small model's step and copies to the host: only when it is due.
        if at_logging_step(self.trainer) and self._logged_step != self.trainer.global_step:
            self._logged_step = self.trainer.global_step
            metrics = self.step_metrics()
            self.log("loss", metrics.pop("loss"), prog_bar=True)
            self.log_dict(metrics)

    def step_metrics(self) -> dict[str, Any]:
        """Metrics of the optimiser step that was just done, as `log_step` logs them: name to number or 0-dim tensor."""
        metrics: dict[str, Any] = {
            name: torch.stack([of[name] for of in self._losses]).mean() for name in self._losses[0]
        }
        metrics = {"loss": metrics.pop("loss"), "lr": self._lr, **metrics, **getattr(self.criterion, "last_stats", {})}
        if self._gradient_norm is not None:
            metrics["gradient_norm"] = self._gradient_norm
        return metrics

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning refuses to clip beside a fused optimiser under any mixed precision; only a gradient scaler is in
        # the way.
        by_norm = bool(gradient_clip_val) and not self._scales_gradients and gradient_clip_algorithm != "value"
        if not by_norm:
            # Of a step that is not logged it is not asked for: it reads every gradient once more.
            due = logs_next_step(self.trainer)
            self._gradient_norm = self._norm_of_gradients(optimizer) if due else None
        if self._scales_gradients or not gradient_clip_val:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val, foreach=True)
        else:
            self._gradient_norm = nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val, foreach=True)

    def _norm_of_gradients(self, optimizer: Optimizer) -> Tensor:
        gradients = [weight.grad for weight in self.parameters() if weight.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self._scales_gradients and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler: Any = getattr(self.trainer.precision_plugin, "scaler", None)
            norm = norm / scaler.get_scale()  # such an optimiser takes it out itself
        return norm

    @property
    def _scales_gradients(self) -> bool:
        return getattr(self.trainer.precision_plugin, "scaler", None) is not None

    def _lr_scale(self) -> float:
        if self.optimizer_config.lr_scaling == "none":
            return 1.0
        return lr_scale(self.optimizer_config, self._batch_size() * self.trainer.accumulate_grad_batches)

    def _batch_size(self) -> int:
        """Images of a batch of all processes, as the loader or the data module tells it."""
        loader: Any = self.trainer.train_dataloader
        per_process = getattr(loader, "batch_size", None)
        if per_process is None:
            per_process = getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
        if per_process is not None:
            return per_process * self.trainer.world_size
        size = getattr(self.trainer.datamodule, "batch_size", None)  # type: ignore[attr-defined]
        if size is None:
            raise ValueError(
                "model.optimizer.lr_scaling must be none where neither loader nor data module has a batch_size, got "
                f"{self.optimizer_config.lr_scaling}"
            )
        return size

    def configure_optimizers(self) -> OptimizerLRScheduler:
        steps = self.trainer.estimated_stepping_batches
        self.trainer.fit_loop.setup_data()  # with max_steps alone nothing has asked for the length of an epoch
        if steps == float("inf"):
            raise ValueError(
                "trainer.max_epochs or trainer.max_steps must be set, got neither: the schedule has no end"
            )
        clips_scaled = self._scales_gradients and bool(self.trainer.gradient_clip_val)
        optimizer = build_optimizer(
            self,
            self.optimizer_config,
            fused=not clips_scaled,
            scale=self._lr_scale(),
            constant_lr=self.constant_lr,
        )
        per_epoch = -(-self.trainer.num_training_batches // self.trainer.accumulate_grad_batches)
        epochs = Fraction(int(steps), int(per_epoch))
        scheduler = build_scheduler(optimizer, self.schedule_config, steps=int(steps), epochs=epochs)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": self.schedule_config.interval},
        }


def share_of_mean(rows: int, like: Tensor) -> Tensor | float:
    """Factor on a mean over this process's rows that makes DDP's average the mean over all rows: n·processes/Σ n."""
    _, processes = world()
    if processes == 1:
        return 1.0
    total = like.new_tensor(rows)
    dist.all_reduce(total)
    return rows * processes / total

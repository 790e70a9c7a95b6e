"""Stops a run whose numbers are lost, and warns of one whose temperatures are."""

import warnings
from typing import Any

import lightning as L
import torch
from torch import Tensor

from ..nonfinite import NonFiniteError
from ..steps import at_logging_step

COLLAPSED = 0.99


class Guard(L.Callback):
    """Error for a loss that is not finite; one warning for temperatures that all sit at a bound.

    Args:
        every_n_steps: how often the losses since the last look are read back from a GPU, which waits for it.
            On the CPU every step is read.
        window: warn once the share of temperatures at a bound has been above 0.99 for so many steps.

    Attributes:
        collapsed_at: step of the warning, None if there was none.
    """

    def __init__(self, every_n_steps: int = 10, window: int = 100) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("window", window)):
            if value < 1:
                raise ValueError(f"guard.{name} must be at least 1, got {value}")
        self.every_n_steps = every_n_steps
        self.window = window
        self.collapsed_at: int | None = None
        self._since: int | None = None
        self._finite: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"collapsed_at": self.collapsed_at, "since": self._since}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.collapsed_at, self._since = state_dict["collapsed_at"], state_dict["since"]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        finite = torch.isfinite(outputs["loss"].detach())
        self._finite = finite if self._finite is None else self._finite & finite
        step = trainer.global_step
        if (finite.device.type == "cpu" or step % self.every_n_steps == 0) and not self._finite:
            raise NonFiniteError(trainer, f"the loss is not finite ({outputs['loss'].item()})")
        if at_logging_step(trainer):
            self._check_temperatures(step, pl_module.criterion.last_stats)  # type: ignore[union-attr, arg-type]

    def _check_temperatures(self, step: int, stats: dict[str, Tensor]) -> None:
        shares = [value for name, value in stats.items() if name.endswith("_at_bound")]
        if not shares or not any(share > COLLAPSED for share in shares):
            self._since = None
            return
        if self._since is None:
            self._since = step
        if self.collapsed_at is None and step - self._since >= self.window:
            self.collapsed_at = step
            warnings.warn(
                f"the temperatures have collapsed: for {step - self._since} steps more than {COLLAPSED:.0%} "
                "of those of the positives or of the negatives lie at a bound, so they no longer adapt. Set "
                "model.criterion's temperature to score='cosine' with a larger tau_min (0.1, say).",
                stacklevel=2,
            )


def check_finite_weights(trainer: L.Trainer) -> None:
    """Raise NonFiniteError if a parameter or buffer of the trainer's module is not finite."""
    tensors = [t for t in trainer.lightning_module.state_dict().values() if t.is_floating_point()]
    if not torch.isfinite(torch.stack(torch._foreach_norm(tensors, float("inf")))).all():
        raise NonFiniteError(trainer, "a weight is not finite")

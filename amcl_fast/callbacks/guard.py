"""Stops a run whose numbers are lost, and warns of one whose projections or temperatures are."""

import warnings
from typing import Any

import lightning as L
import torch
from torch import Tensor

from ..diagnosis import diagnose
from ..methods.trainer import NonFiniteError, at_logging_step, begins, stepped
from ..setting_types import whole


class Guard(L.Callback):
    """Error for a loss that is not finite; one warning for each kind of fault that `amcl_fast.diagnose` finds.

    Args:
        every_n_steps: how often the losses since the last look are read back from a GPU, which waits for it.
            On the CPU every step is read.
        window: warn once a fault has been there for so many steps.

    Attributes:
        collapsed_at: step of the warning for each kind of fault (`projections`, `temperatures`) there was one for.
    """

    def __init__(self, every_n_steps: int = 10, window: int = 100) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("window", window)):
            whole(f"guard.{name}", value, 1)
        self.every_n_steps = every_n_steps
        self.window = window
        self.collapsed_at: dict[str, int] = {}
        self._since: dict[str, int] = {}
        self._finite: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"collapsed_at": dict(self.collapsed_at), "since": dict(self._since)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def by_kind(value: dict[str, int] | int | None) -> dict[str, int]:
            # Checkpoints of before there were kinds hold one step or None, of the temperatures.
            return dict(value) if isinstance(value, dict) else {} if value is None else {"temperatures": value}

        self.collapsed_at, self._since = by_kind(state_dict["collapsed_at"]), by_kind(state_dict["since"])

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if begins(trainer, stage):
            self.collapsed_at, self._since = {}, {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._finite = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        finite = torch.isfinite(outputs["loss"].detach())
        self._finite = finite if self._finite is None else self._finite & finite
        step = trainer.global_step
        due = stepped(trainer) and step % self.every_n_steps == 0
        if (finite.device.type == "cpu" or due) and not self._finite:
            raise NonFiniteError(trainer, f"the loss is not finite ({outputs['loss'].item()})")
        if at_logging_step(trainer):
            criterion = pl_module.criterion
            if hasattr(criterion, "last_stats") and hasattr(criterion, "adaptive"):  # as this package's
                self._check(step, criterion)

    def _check(self, step: int, criterion: Any) -> None:
        findings = {finding.kind: finding for finding in diagnose(criterion)}
        self._since = {kind: self._since.get(kind, step) for kind in findings}
        for kind, finding in findings.items():
            steps = step - self._since[kind]
            if kind not in self.collapsed_at and steps >= self.window:
                self.collapsed_at[kind] = step
                warnings.warn(f"for {steps} steps {finding}", stacklevel=2)


def check_finite_weights(trainer: L.Trainer) -> None:
    """Raise NonFiniteError if a parameter or buffer of the trainer's module is not finite."""
    tensors = [t for t in trainer.lightning_module.state_dict().values() if t.is_floating_point()]
    if not torch.isfinite(torch.stack(torch._foreach_norm(tensors, float("inf")))).all():
        raise NonFiniteError(trainer, "a weight is not finite")

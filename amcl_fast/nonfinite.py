"""The error of a run whose numbers are lost, and what its message says."""

import lightning as L

REMEDY = (
    "Try a lower model.optimizer.lr, trainer.gradient_clip_val=1.0, trainer.precision=bf16-mixed instead of "
    "16-mixed, or, with an adaptive temperature, score='cosine' and a larger tau_min."
)


class NonFiniteError(RuntimeError):
    """Loss or weights of a training are infinite or NaN."""

    def __init__(self, trainer: L.Trainer, what: str) -> None:
        paths = (getattr(callback, "path", None) for callback in trainer.checkpoint_callbacks)
        path = next((path for path in paths if path is not None), None)
        kept = f"The last good checkpoint is {path}." if path and path.exists() else "None had been saved."
        super().__init__(f"step {trainer.global_step}, epoch {trainer.current_epoch}: {what}. {REMEDY} {kept}")

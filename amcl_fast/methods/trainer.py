"""What a Trainer tells: whether an optimiser step or an epoch has ended, the time is used up, the numbers are lost."""

import lightning as L
from lightning.pytorch.callbacks import Timer

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


def begins(trainer: L.Trainer, stage: str) -> bool:
    """Whether, in the hook `setup`, a training is set up that has done no step, unless a checkpoint is loaded next.

    What callbacks hold then is of another training with the same objects.
    """
    return stage == "fit" and trainer.global_step == 0


def stepped(trainer: L.Trainer) -> bool:
    """Whether the batch that was just done ended an optimiser step; within one, gradients are being accumulated."""
    return not trainer.fit_loop._should_accumulate()


def at_logging_step(trainer: L.Trainer) -> bool:
    """Whether metrics are due after this optimiser step, every `log_every_n_steps` of the trainer."""
    return stepped(trainer) and trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]


def logs_next_step(trainer: L.Trainer) -> bool:
    """Whether metrics are due after the optimiser step that this batch ends: at a logging step, and at the last."""
    step = trainer.global_step + 1
    last_epoch = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= trainer.max_epochs  # type: ignore[operator]
    last = step == trainer.max_steps or (trainer.is_last_batch and last_epoch)
    return last or step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]


def at_step_boundary(trainer: L.Trainer) -> bool:
    """Whether a checkpoint may be taken after this batch: its optimiser step is done, its epoch goes on.

    After the last batch of an epoch the place for it is the end of the epoch, or the epoch's closing work
    (kNN) would be left out after a resume.
    """
    return stepped(trainer) and not trainer.is_last_batch


def epoch_is_over(trainer: L.Trainer) -> bool:
    """Whether the last batch of the epoch is done.

    Lightning calls the hooks of an epoch's end also where a training stops within one (max_steps, max_time, any
    `should_stop`).
    """
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def out_of_time(trainer: L.Trainer) -> bool:
    """Whether a training has ended, or does not go on, because its `max_time` is used up before its last step."""
    left = [timer.time_remaining() for timer in trainer.callbacks if isinstance(timer, Timer)]  # type: ignore[attr-defined]
    used_up = trainer.should_stop and any(seconds is not None and seconds <= 0 for seconds in left)
    limits = ((trainer.current_epoch, trainer.max_epochs), (trainer.global_step, trainer.max_steps))
    return used_up and not any(limit not in (None, -1) and done >= limit for done, limit in limits)  # type: ignore[operator]

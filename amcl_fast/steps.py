"""The two moments of training at which something besides a step may happen."""

import lightning as L


def at_logging_step(trainer: L.Trainer) -> bool:
    """Whether metrics are due after this optimiser step, every `log_every_n_steps` of the trainer."""
    return trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]


def at_step_boundary(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether a checkpoint may be taken after this batch: its optimiser step is done, its epoch goes on.

    After the last batch of an epoch the place for it is the end of the epoch, or the epoch's closing work
    (kNN) would be left out after a resume.
    """
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and not trainer.is_last_batch

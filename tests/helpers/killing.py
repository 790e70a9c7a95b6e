"""Callbacks that kill their own process, for runs that a test resumes."""

import os
import signal

import lightning as L


class Kill(L.Callback):
    """SIGKILL after the optimiser step `step`, before anything is saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class KillAfterSave(L.Callback):
    """SIGKILL right after the checkpoint of the optimiser step `step` was saved, before Lightning goes on."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_start(self, trainer: L.Trainer, *_: object) -> None:
        checkpoint = next(callback for callback in trainer.checkpoint_callbacks if hasattr(callback, "save"))
        save = checkpoint.save

        def save_and_die(trainer: L.Trainer, *args: object) -> None:
            save(trainer, *args)
            if trainer.global_step == self.step:
                os.kill(os.getpid(), signal.SIGKILL)

        checkpoint.save = save_and_die


class KillOnce(L.Callback):
    """SIGKILL of one of torchrun's processes after the optimiser step `step`, unless torchrun has started it again."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
        if first and (trainer.global_rank, trainer.global_step) == (self.rank, self.step):
            os.kill(os.getpid(), signal.SIGKILL)


class BreakOff(L.Callback):
    """An error in torchrun's n-th attempt right after the optimiser step `steps[n]`, of which nothing is saved then."""

    def __init__(self, steps: list[int]) -> None:
        self.steps = dict(enumerate(steps))

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == self.steps.get(int(os.environ["TORCHELASTIC_RESTART_COUNT"])):
            raise BrokenOffError


class BrokenOffError(Exception):
    """Of `BreakOff`."""

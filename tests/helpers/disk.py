"""A disk that is full for a while: of this process, and of runs that a test starts as a process of their own."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L


class FullAt(L.Callback):
    """No file of this process can grow beyond a few pages at the end of one epoch, where the checkpoint is saved."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_train_epoch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.current_epoch == self.epoch:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, self.limits[1]))

    def on_train_epoch_start(self, trainer: L.Trainer, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)


@contextmanager
def no_room(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes in the block: what is written there fails or is cut short."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

"""A callback that fills the disk for a while, for runs that a test starts as a process of their own."""

import resource

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

"""What a study asks of its data, found when a training has looked for its images and not at its end."""

import lightning as L


class Measured(L.Callback):
    """Refuses a training before its first step whose encoder could not be measured.

    Raises:
        ValueError: the data have no classes, or nothing held out.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        why = trainer.datamodule.unmeasurable  # type: ignore[attr-defined]
        if why is not None:
            raise ValueError(f"data must be such that kNN can be measured, in a study of accuracies: {why}")

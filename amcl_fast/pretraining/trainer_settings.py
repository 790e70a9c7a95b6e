"""Which settings of Lightning's trainer a run takes, and which it refuses, before anything is begun."""

import logging
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Timer

from ..launch import by_others
from ..paths import expanded

# Of the trainer's settings those that a run has no use for, with what to give instead.
_USELESS = {
    "logger": "must be loggers that join the run's own, which report and resume read",
    "fast_dev_run": "must be false, for its run could not go on: trainer.max_steps or trainer.limit_train_batches make "
    "a short one",
    "barebones": "must be false, or there are no loggers, no checkpoints and no report: amcl-fast bench measures speed",
    "overfit_batches": "must be 0, or they would be other images in every epoch: data.limit trains on few of them",
    "reload_dataloaders_every_n_epochs": "must be 0: the images are listed once, or each epoch would have the order of "
    "the first",
}


def check_trainer(trainer: Any) -> None:
    """Raise ValueError for a setting of the trainer that leaves nothing to train. A resume may change all of them."""
    for name, accepted in (("max_epochs", "-1 or at least 1"), ("max_steps", "-1 or at least 1")):
        value = trainer[name]
        if value is not None and value != -1 and value < 1:
            raise ValueError(f"trainer.{name} must be {accepted}, got {value}")
    if trainer.max_epochs == -1 and trainer.max_steps == -1:
        raise ValueError(
            "trainer.max_steps must be given with trainer.max_epochs=-1, or the schedule has no end, got -1"
        )
    if trainer.log_every_n_steps is not None and trainer.log_every_n_steps < 1:
        raise ValueError(f"trainer.log_every_n_steps must be at least 1, got {trainer.log_every_n_steps}")
    if trainer.max_time is not None and not Timer(trainer.max_time).time_remaining():
        raise ValueError(f"trainer.max_time must be above 0, got {trainer.max_time}")
    if trainer.num_nodes > 1 and not by_others():
        raise ValueError(
            "trainer.num_nodes must be 1 unless torchrun or srun starts the processes of all machines, each with the "
            f"same --run_dir, got {trainer.num_nodes}"
        )


def refuse_useless(trainer: Any, run_dir: Path | None, stored: Any = None) -> None:
    """Raise ValueError for a setting of the trainer that a run has no use for, or that cannot be.

    Only what is given now is judged: no run is locked out by what it was begun with.

    Args:
        trainer: its settings; `default_root_dir` is unset, since the folder of a run may be moved.
        run_dir: None: of a name that is not known yet.
        stored: settings of the trainer that a resumed run had.
    """

    def given(name: str) -> Any:
        value = trainer[name]
        return None if stored is not None and value == stored[name] else value

    root = trainer.default_root_dir
    if root is not None and (run_dir is None or os.path.abspath(expanded(str(root))) != os.path.abspath(run_dir)):
        raise ValueError(f"trainer.default_root_dir must be the folder of the run, given as --run_dir, got {root}")
    trainer.default_root_dir = None
    for name, reason in _USELESS.items():
        value = given(name)
        if value is False if name == "logger" else value:
            raise ValueError(f"trainer.{name} {reason}, got {str(value).lower()}")
    limit, batches = given("limit_train_batches"), given("accumulate_grad_batches")
    if limit is not None and limit <= 0:
        raise ValueError(f"trainer.limit_train_batches must be above 0, got {limit}")
    if batches is not None and batches < 1:
        raise ValueError(f"trainer.accumulate_grad_batches must be at least 1, got {batches}")


def let_speak(trainer: Any) -> None:
    """Let Lightning announce what its settings ask for."""
    for name, wanted in (
        ("callbacks.model_summary", trainer.enable_model_summary),
        ("profilers.profiler", trainer.profiler),
    ):
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.INFO if wanted else logging.NOTSET)

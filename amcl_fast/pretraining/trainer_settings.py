"""Which settings of Lightning's trainer a run takes, and which it refuses, before anything is begun."""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from lightning.pytorch.strategies import StrategyRegistry

from ..callbacks import Checkpoint, OnlineKNN
from ..launch import by_others
from ..paths import expanded
from ..runs.directory import METRICS
from ..setting_types import real, shown, whole

# Of the trainer's settings those that a run has no use for: what says so, and what to give instead.
USELESS: dict[str, tuple[tuple[Any, ...], str]] = {
    "logger": (
        (None, True),
        f"must be loggers that join the run's own, {METRICS} and TensorBoard's, which report and resume read",
    ),
    "barebones": (
        (False,),
        "must be false, or there are no loggers, no checkpoints and no report: amcl-fast bench measures speed",
    ),
    "reload_dataloaders_every_n_epochs": (
        (0,),
        "must be 0: the images are listed once, or each epoch would have the order of the first",
    ),
    **dict.fromkeys(
        ("limit_val_batches", "limit_test_batches", "limit_predict_batches"),
        ((None, 0), "must be null, for a run has no validation: knn.bank and knn.queries limit what is measured"),
    ),
    "val_check_interval": ((None,), "must be null, for a run has no validation: knn.every_n_epochs says when kNN is"),
    "check_val_every_n_epoch": (
        (1, None),
        "must be 1, for a run has no validation: knn.every_n_epochs says when kNN is",
    ),
    "num_sanity_val_steps": ((0, None), "must be 0, for a run has no validation: trainer.fast_dev_run tries a run out"),
    "inference_mode": ((True,), "must be true, for a run has no validation, of which alone it is"),
    "use_distributed_sampler": ((True,), "must be true: every process reads its own part of the images, always"),
    "model_registry": (
        (None,),
        "must be null, for none is written to: amcl-fast export --hub NAME publishes an encoder",
    ),
}

_PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
PROFILE = "profile"
"""Name of a profiler's report, to which Lightning puts "fit-" and a suffix."""

_COUNT = r"0*\d{1,6}"
"""A number of processes."""

_ANY_LENGTH = 1000
"""Epochs of a schedule that is built and not begun: any warm-up fits into it."""


def check_possible(trainer: Any) -> None:
    """Raise ValueError for a setting of the trainer that cannot be, or not on this machine."""
    accelerators = ["auto", "gpu", *sorted(AcceleratorRegistry.available_accelerators())]
    # What starts processes by pickling cannot take a run, whose locks and pipelines are of one process; of what trains
    # in forks nothing comes back, so that there would be neither closing lines nor a report.
    in_forks = ("spawn", "fork", "notebook")
    strategies = [name for name in StrategyRegistry.available_strategies() if not any(map(name.count, in_forks))]
    for name, names in (
        ("accelerator", accelerators),
        ("strategy", ["auto", *sorted(strategies, key=len)]),
        ("gradient_clip_algorithm", ["norm", "value"]),
    ):
        value = trainer[name]
        if isinstance(value, str) and value.lower() not in names and value not in names:
            of = ", ".join(names if len(names) < 9 else [*names[:8], "…"])
            raise ValueError(f"trainer.{name} must be one of {of}, got {shown(value)}")
    available = {"gpu": torch.cuda.is_available() or torch.backends.mps.is_available()}
    available |= {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if isinstance(trainer.accelerator, str) and not available.get(trainer.accelerator.lower(), True):
        raise ValueError(
            f"trainer.accelerator must be cpu or auto where torch finds no such device, got {trainer.accelerator}; "
            "amcl-fast doctor says what there is"
        )
    devices = str(trainer.devices)
    if device_of(trainer) == "cpu" and devices != "auto" and not re.fullmatch(_COUNT, devices):
        raise ValueError(f"trainer.devices must be auto or a number of processes on the CPU, got {shown(devices)}")
    whole("trainer.num_nodes", trainer.num_nodes, 1, 10**6)
    if isinstance(trainer.profiler, str) and trainer.profiler.lower() not in _PROFILERS:
        raise ValueError(
            f"trainer.profiler must be null, {', '.join(_PROFILERS)} or a class of Lightning's, got {trainer.profiler}"
        )
    limit = trainer.limit_train_batches
    if isinstance(limit, float) and limit > 1:
        raise ValueError(
            f"trainer.limit_train_batches must be a whole number of batches, or a share of them up to 1.0, got {limit}"
        )
    if trainer.max_time is not None:
        try:
            Timer(trainer.max_time)
        except (MisconfigurationException, ValueError, TypeError, OverflowError):
            raise ValueError(
                "trainer.max_time must be DD:HH:MM:SS or a group of days, hours, minutes and seconds, got "
                f"{shown(trainer.max_time)}"
            ) from None


def device_of(trainer: Any) -> str:
    """The kind of device that is trained on, as torch calls it."""
    name = trainer.accelerator.lower() if isinstance(trainer.accelerator, str) else ""
    if name not in ("auto", "gpu"):
        return name
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def check_trainer(trainer: Any) -> None:
    """Raise ValueError for a setting of the trainer that leaves nothing to train. A resume may change all of them."""
    for name in ("max_epochs", "max_steps"):
        value = trainer[name]
        if value is not None and value < -1:
            raise ValueError(f"trainer.{name} must be -1 or at least 0, got {value}")
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
    for name, (harmless, reason) in USELESS.items():
        value = given(name)
        if value is False if name == "logger" else value is not None and value not in harmless:
            raise ValueError(f"trainer.{name} {reason}, got {shown(value)}")
    if _is_endless(trainer) and (stored is None or not _is_endless(stored)):
        raise ValueError("trainer.max_epochs must be given, or trainer.max_steps, or the schedule has no end, got null")
    limit, batches = given("limit_train_batches"), given("accumulate_grad_batches")
    if limit is not None and limit <= 0:
        raise ValueError(f"trainer.limit_train_batches must be above 0, got {limit}")
    if batches is not None and batches < 1:
        raise ValueError(f"trainer.accumulate_grad_batches must be at least 1, got {batches}")
    clip, algorithm = given("gradient_clip_val"), given("gradient_clip_algorithm")
    if clip is not None:
        real("trainer.gradient_clip_val", clip, 0, of=", which clips nothing")
    if algorithm is not None and not trainer.gradient_clip_val:
        raise ValueError(
            f"trainer.gradient_clip_algorithm must be null without trainer.gradient_clip_val, got {algorithm}"
        )
    for what in ("epochs", "steps"):
        least, most = given(f"min_{what}"), trainer[f"max_{what}"]
        if least is not None and most not in (None, -1) and least > most:
            raise ValueError(f"trainer.min_{what} must be at most trainer.max_{what}, {most}, got {least}")
    devices = given("devices")
    if devices is not None and not re.fullmatch(
        r"auto|-1|0*[1-9]\d{,5}|\[[\d,\s]*\d[\d,\s]*\]|\d+\s*,[\d,\s]*", str(devices)
    ):
        raise ValueError(f"trainer.devices must be auto, -1, their number or a list of their indices, got {devices}")
    overfit, tried = given("overfit_batches"), given("fast_dev_run")
    if overfit is not None and (overfit < 0 or (isinstance(overfit, float) and overfit > 1)):
        raise ValueError(
            f"trainer.overfit_batches must be a number of batches, or a share of them up to 1.0, got {overfit}"
        )
    if tried is not None and tried < 0:
        raise ValueError(f"trainer.fast_dev_run must be true, false or a number of batches, got {tried}")
    if tried and stored is not None:
        raise ValueError(
            f"trainer.fast_dev_run must be false with --resume, for it leaves nothing behind, got {str(tried).lower()}"
        )


def _is_endless(trainer: Any) -> bool:
    """Whether nobody has said where the training ends, which Lightning takes for a thousand epochs."""
    return trainer.max_epochs is None and trainer.max_steps in (None, -1)


def let_speak(trainer: Any) -> None:
    """Let Lightning announce what its settings ask for."""
    for name, wanted in (
        ("callbacks.model_summary", trainer.enable_model_summary),
        ("profilers.profiler", trainer.profiler),
    ):
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.INFO if wanted else logging.NOTSET)


class Cut(L.Callback):
    """Ends a training after a number of batches, and the optimiser step to which the last of them belongs.

    Its schedule is that of the whole.

    Args:
        batches: 0: before the first.
    """

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.batches:
            trainer.fit_loop.max_epochs = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 >= self.batches:
            trainer.should_stop = True


class TrainerParts:
    """What settings of the trainer mean that this package carries out in Lightning's place.

    Args:
        given: settings of the trainer, instantiated.
        run_dir: folder of the run.
    """

    def __init__(self, given: Any, run_dir: Path) -> None:
        self._given, self._run_dir = given, run_dir
        self._tried = int(given["fast_dev_run"])
        self._nothing = 0 in (given["max_epochs"], given["max_steps"])

    @property
    def loggers(self) -> list[Logger]:
        """The user's, which join the run's own; what is only tried out is told to nobody."""
        return (
            [] if self._tried else [logger for logger in _listed(self._given["logger"]) if isinstance(logger, Logger)]
        )

    @property
    def callbacks(self) -> list[L.Callback]:
        """The user's, and what ends a training before its schedule does, if anything."""
        theirs = _listed(self._given["callbacks"])
        if self._tried:
            return [
                *(callback for callback in theirs if not isinstance(callback, LightningCheckpoint)),
                Cut(self._tried),
            ]
        return [*theirs, Cut(0)] if self._nothing else theirs

    def set_up(self, datamodule: Any) -> None:
        """Tell the data module what is its to carry out.

        Raises:
            ValueError: a plugin saves later than it is asked to, or a callback where nothing is to be saved.
        """
        datamodule.overfit_batches = self._given["overfit_batches"]
        if any(isinstance(plugin, AsyncCheckpointIO) for plugin in _listed(self._given["plugins"])):
            raise ValueError(
                "trainer.plugins must save at once, or no checkpoint could be renamed into place, got AsyncCheckpointIO"
            )
        if self._given["enable_checkpointing"] is False and not self._tried:
            savers = [type(c).__name__ for c in _listed(self._given["callbacks"]) if isinstance(c, LightningCheckpoint)]
            if savers:
                raise ValueError(
                    f"trainer.enable_checkpointing must be true beside {savers[0]} in trainer.callbacks, got false"
                )

    def set_up_callbacks(self, callbacks: Sequence[L.Callback], batch_size: int) -> None:
        """Tell this package's callbacks what is theirs to carry out: what not to save, and how little to measure."""
        for callback in callbacks:
            if isinstance(callback, Checkpoint):
                callback.enabled = self._given["enable_checkpointing"] is not False and not self._tried
            elif isinstance(callback, OnlineKNN) and self._tried:
                few = self._tried * batch_size
                callback.bank, callback.queries = min(callback.bank, few), min(callback.queries, few)

    def in_place_of_settings(self) -> dict[str, Any]:
        """What Lightning's trainer is built with in place of these settings."""
        profiler = self._given["profiler"]
        if isinstance(profiler, str):
            profiler = _PROFILERS[profiler.lower()]()
        if profiler is not None and profiler.filename is None:  # or it reports on stderr
            profiler.filename = PROFILE
            profiler.dirpath = profiler.dirpath or self._run_dir
        replaced = {
            "profiler": profiler,
            "fast_dev_run": False,
            "overfit_batches": 0.0,
            "enable_checkpointing": True,
            # There is no validation; Lightning compares them with the length of an epoch all the same.
            "val_check_interval": None,
            "check_val_every_n_epoch": 1,
        }
        if self._tried or self._nothing:
            replaced |= {"min_epochs": None, "min_steps": None}
        if self._nothing:
            replaced |= {"max_epochs": _ANY_LENGTH, "max_steps": -1}
        return replaced

    def tell_settings(self, settings: dict[str, Any]) -> None:
        """Log all settings of the run to the user's loggers; the run's own have config.yaml beside them."""
        if self._given["enable_autolog_hparams"]:
            for logger in self.loggers:
                logger.log_hyperparams(settings)


def _listed(given: Any) -> list[Any]:
    """Values of a setting that may be one, several or none."""
    return [] if given is None else [*given] if isinstance(given, list | tuple) else [given]

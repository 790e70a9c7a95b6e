"""Values of settings that are of the right type and cannot be all the same, found before anything is built."""

import pydoc
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.strategies import StrategyRegistry

from ..methods import BarlowTwins
from ..ops.backends import TABLE
from ..setting_types import shown

_SEEDS = 1 << 32


def check_values(settings: Any) -> None:
    """Raise ValueError for a value that cannot be, or not beside the others.

    Args:
        settings: of a run, as its parser gives them.
    """
    seed = settings.seed_everything
    if not 0 <= seed < _SEEDS:
        raise ValueError(f"seed_everything must be from 0 to {_SEEDS - 1}, got {seed}")
    _check_trainer(settings.trainer)
    _check_batch(settings)
    _check_model(settings)
    off = next((name for name in ("every_n_epochs", "bank", "queries") if settings.knn[name] == 0), None)
    if off is not None and settings.checkpoint.keep_best:
        raise ValueError(f"checkpoint.keep_best must be false where knn.{off} is 0, got true")
    _check_backend(settings)


def _check_trainer(trainer: Any) -> None:
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
    if _device(trainer) == "cpu" and devices != "auto" and not devices.isdecimal():
        raise ValueError(f"trainer.devices must be auto or a number of processes on the CPU, got {devices}")
    if trainer.num_nodes < 1:
        raise ValueError(f"trainer.num_nodes must be at least 1, got {trainer.num_nodes}")
    limit = trainer.limit_train_batches
    if isinstance(limit, float) and limit > 1:
        raise ValueError(
            f"trainer.limit_train_batches must be a whole number of batches, or a share of them up to 1.0, got {limit}"
        )
    if trainer.max_time is not None:
        try:
            Timer(trainer.max_time)
        except (MisconfigurationException, ValueError, TypeError):
            raise ValueError(
                "trainer.max_time must be DD:HH:MM:SS or a group of days, hours, minutes and seconds, got "
                f"{shown(trainer.max_time)}"
            ) from None


def _device(trainer: Any) -> str:
    """The kind of device that is trained on, as torch calls it."""
    name = trainer.accelerator.lower() if isinstance(trainer.accelerator, str) else ""
    if name not in ("auto", "gpu"):
        return name
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def _check_backend(settings: Any) -> None:
    """A backend that was named takes the device that is trained on; `auto` is one that does."""
    name = settings.get("model.init_args.criterion.init_args.backend")
    if name not in TABLE:
        return
    status, device = TABLE[name].status(), _device(settings.trainer)
    if not status.available:
        why = f"for {name} is not available: {status.reason}"
    elif TABLE[name].device in (None, device) or (device == "cpu" and _interpreted()):
        return
    else:
        why = f"for {name} takes no tensors on {device}"
    raise ValueError(f"model.criterion.backend must be auto or reference, {why}, got {name}")


def _interpreted() -> bool:
    from ..ops.triton import INTERPRETED  # not at the top: a machine may have no Triton

    return INTERPRETED


def _check_batch(settings: Any) -> None:
    devices = settings.trainer.devices
    number = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 1
    processes = max(1, number) * settings.trainer.num_nodes
    batch = settings.get("data.batch_size")
    if batch is not None and batch % processes:
        raise ValueError(
            f"data.batch_size must divide by the {processes} processes of trainer.devices, got {batch}; close to it: "
            f"{max(1, round(batch / processes)) * processes}"
        )


def _check_model(settings: Any) -> None:
    epochs, steps = settings.trainer.max_epochs, settings.trainer.max_steps
    warmup = settings.get("model.init_args.schedule.warmup_epochs")
    whole = steps in (None, -1) and not settings.trainer.fast_dev_run
    if warmup is not None and epochs is not None and epochs > 0 and whole and not 0 <= warmup < epochs:
        raise ValueError(
            "model.schedule.warmup_epochs must be at least 0 and less than trainer.max_epochs, "
            f"{epochs}, got {warmup:g}"
        )
    dim = settings.get("model.init_args.projector.dim")
    read = settings.get("model.init_args.criterion.init_args.temperature.init_args.dim")
    method = pydoc.locate(settings.get("model.class_path") or "")
    of_channels = isinstance(method, type) and issubclass(method, BarlowTwins)
    if dim is not None and read is not None and dim != read and not of_channels:
        raise ValueError(
            f"model.criterion.temperature.dim must be model.projector.dim, {dim}, the width of the projections that it "
            f"reads, got {read}"
        )

"""Values of settings that are of the right type and cannot be all the same, found before anything is built."""

import pydoc
from typing import Any

from ..methods import BarlowTwins
from ..ops.backends import TABLE
from .trainer_settings import check_possible, device_of

_SEEDS = 1 << 32


def check_values(settings: Any) -> None:
    """Raise ValueError for a value that cannot be, or not beside the others.

    Args:
        settings: of a run, as its parser gives them.
    """
    seed = settings.seed_everything
    if not 0 <= seed < _SEEDS:
        raise ValueError(f"seed_everything must be from 0 to {_SEEDS - 1}, got {seed}")
    check_possible(settings.trainer)
    _check_batch(settings)
    _check_model(settings)
    off = next((name for name in ("every_n_epochs", "bank", "queries") if settings.knn[name] == 0), None)
    if off is not None and settings.checkpoint.keep_best:
        raise ValueError(f"checkpoint.keep_best must be false where knn.{off} is 0, got true")
    _check_backend(settings)


def _check_backend(settings: Any) -> None:
    """A backend that was named takes the device that is trained on; `auto` is one that does."""
    name = settings.get("model.init_args.criterion.init_args.backend")
    if name not in TABLE:
        return
    status, device = TABLE[name].status(), device_of(settings.trainer)
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
    of = "devices" if settings.trainer.num_nodes == 1 else "devices and trainer.num_nodes"
    batch = settings.get("data.batch_size")
    if batch is not None and batch % processes:
        raise ValueError(
            f"data.batch_size must divide by the {processes} processes of trainer.{of}, got {batch}; close to it: "
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

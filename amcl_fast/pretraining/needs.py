"""What a training needs of a machine, estimated from its encoder and batch before it begins, and told if it is much."""

import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from amcl_fast.data import ContrastiveDataModule

_CORE = 50e9
"""Operations a second of a CPU's core in float32: about half of what AVX2 could, which convolutions reach."""

_SHOWN = 2**29
"""Bytes of what is told of images: less is no gibibyte."""

_GROUPS_OF_THIS = Path("/proc/self/cgroup")
_GROUPS = {
    "": (Path("/sys/fs/cgroup"), "memory.max"),
    "memory": (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
}
"""Where the second and the first version of cgroups say how much memory there is, by what they call it."""

_DAYS = 2.0
"""More than that on a CPU is told."""

_SHARE = 0.95
"""Of the memory there is, which a training may need without a word."""

_MOST_BYTES, _MOST_OPERATIONS = 20e3, 10e6
"""Of a pixel, of any encoder: four times what a ResNet-18 for small images keeps, nine times what it computes. Where
these would fit nothing is counted."""


def warn_of_needs(trainer: Any, module: Any, datamodule: Any) -> None:
    """Warn, in one line, of a training that is too large for the memory, or takes days on the CPU.

    And of more processes than cores, and of images whose batches may not fit into the machine's memory. What cannot be
    estimated, as of an encoder that looks at values, is not told.

    Args:
        trainer: with its devices, before it trains.
        module: the method; its `backbone` is looked at.
        datamodule: with its images found.
    """
    device = trainer.strategy.root_device
    on_cpu, cores, processes = device.type == "cpu", len(os.sched_getaffinity(0)), trainer.num_devices
    said = []
    if on_cpu and processes > cores:
        lacks = "" if torch.cuda.is_available() else ", for torch finds no GPU"
        said.append(f"trainer.devices starts {processes} processes on {cores} CPU cores{lacks}: they take turns")
    views = sum((size / datamodule.size) ** 2 for size in datamodule.view_sizes)
    batch = datamodule.batch_size // trainer.world_size * (processes if on_cpu else 1)  # of one memory
    memory = _ram() if on_cpu else float(torch.cuda.get_device_properties(device).total_memory)
    images = _images(trainer, datamodule) if on_cpu else 0.0
    in_time = _CORE * cores * _DAYS * 86_400
    pixels = views * datamodule.size**2
    if batch * pixels * _MOST_BYTES > _SHARE * memory or 3 * images * pixels * _MOST_OPERATIONS > in_time:
        try:
            kept, operations = of_an_image(module.backbone, datamodule.size)
        except Exception:  # of an encoder of one's own
            kept = operations = 0.0
        needed = batch * views * kept / (2 if "16" in str(trainer.precision) else 1)
        if needed > _SHARE * memory:
            where = "" if on_cpu else " on the GPU"
            said.append(
                f"data.batch_size {datamodule.batch_size:,} of {datamodule.size} px needs up to {_size(needed)} for "
                f"the backward pass, and there are {_size(memory)}{where}: more trainer.devices or a smaller "
                "data.batch_size take less, for a ViT gradient_checkpointing too"
            )
        if 3 * operations * views * images > in_time:
            days = 3 * operations * views * images / (_CORE * cores) / 86_400
            said.append(
                f"training takes about {days:,.0f} days on {cores} CPU cores (3 × {operations / 1e9:.2g} GFLOP × "
                f"{views:g} views × {images:,.0f} images at {_CORE / 1e9:g} GFLOP/s a core)"
            )
    if isinstance(datamodule, ContrastiveDataModule) and (
        told := _of_images(datamodule, datamodule.batch_size // trainer.world_size, processes)
    ):
        said.append(told)
    if said:
        warnings.warn("; ".join(said), stacklevel=2)


def _of_images(datamodule: ContrastiveDataModule, batch_size: int, processes: int) -> str:
    """A line on the memory for a batch of the largest images, "" if there is enough."""
    of_one, memory = datamodule.most_memory(batch_size), _ram()
    if processes * sum(of_one) <= _SHARE * memory:
        return ""
    parts = {
        "decoded": of_one.decoded,
        "read ahead": of_one.encoded,
        "while they are made smaller": of_one.reduced,
        "views": of_one.views,
    }
    several = f" in each of {processes} processes" if processes > 1 else ""
    helps = ["data.max_image_pixels", "data.max_image_bytes", "data.batch_size"]
    if datamodule.reduce_above is None:
        helps = ["data.reduce_above (now null)", *helps]
    return (
        f"should the largest images of {datamodule.root} meet in a batch of {datamodule.batch_size:,}, they take up to "
        f"{', '.join(f'{_size(size)} {what}' for what, size in parts.items() if size > _SHOWN)}{several}, and there "
        f"are {_size(memory)}: {', '.join(helps[:-1])} or {helps[-1]} bounds it"
    )


def of_an_image(backbone: nn.Module, size: int) -> tuple[float, float]:
    """Bytes in float32 that the backward pass keeps of an image, and operations of its forward pass.

    Counted layer by layer on tensors without values: nothing is computed.

    Args:
        backbone: images (n, 3, size, size) to features; it stays as it is.
        size: side of the images, in pixels.

    Raises:
        Exception: whatever the encoder fails of on such tensors.
    """
    images = 2  # normalisation over the batch takes no single one
    state: dict[str, Tensor] = {
        name: torch.empty_like(value, device="meta", requires_grad=value.requires_grad)
        for name, value in (*backbone.named_parameters(), *backbone.named_buffers())
    }
    own = {id(value.untyped_storage()) for value in state.values()}
    kept: dict[int, tuple[int, Any]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in own:
            kept[id(storage)] = storage.nbytes(), storage  # which lives on: a number is of one storage at a time
        return tensor

    counter = FlopCounterMode(display=False)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), counter, _Training(backbone):
        functional_call(backbone, state, (torch.empty(images, 3, size, size, device="meta"),))
    return sum(size for size, _ in kept.values()) / images, counter.get_total_flops() / images


class _Training:
    """A block in which a module is in training mode; its parts are as they were after it."""

    def __init__(self, module: nn.Module) -> None:
        self._modes = [(part, part.training) for part in module.modules()]

    def __enter__(self) -> None:
        for part, _ in self._modes:
            part.training = True

    def __exit__(self, *_: object) -> None:
        for part, mode in self._modes:
            part.training = mode


def _images(trainer: Any, datamodule: Any) -> float:
    """Images that a training goes through, limits of its epochs included."""
    an_epoch = datamodule.num_train // datamodule.batch_size
    limit, overfit = trainer.limit_train_batches, datamodule.overfit_batches
    for share in (limit, overfit or None):
        if share is not None:
            an_epoch = min(an_epoch, share) if isinstance(share, int) else an_epoch * share
    batches = an_epoch * trainer.max_epochs if trainer.max_epochs not in (None, -1) else float("inf")
    if trainer.max_steps not in (None, -1):
        batches = min(batches, trainer.max_steps * trainer.accumulate_grad_batches)
    return float(batches * datamodule.batch_size)


def _ram() -> float:
    """Bytes of the machine, or of the smallest cgroup that this process is in."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError):
        for line in _GROUPS_OF_THIS.read_text("utf-8", "surrogateescape").splitlines():
            _, controllers, path = line.split(":", 2)
            root, file = _GROUPS.get(controllers, (None, ""))
            if root is not None:
                # In a container the path may be the host's, and the root the container's own.
                folders = (root / path.lstrip("/"), *(root / path.lstrip("/")).parents)
                found += [_limit(folder / file) for folder in folders if folder.is_relative_to(root)]
    return float(min(found))


def _limit(file: Path) -> int:
    with suppress(OSError, ValueError):
        return int(file.read_bytes())
    return sys.maxsize  # "max", or not there


def _size(count: float) -> str:
    return f"{count / 2**30:,.0f} GiB"

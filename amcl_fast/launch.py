"""Processes that torchrun or srun has started for a command without a trainer: their group, and how they wait."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment

from .distributed import together, world

_WAITING = timedelta(days=30)


def _environment() -> ClusterEnvironment | None:
    """What the launcher says of this process; None without one, or where it has started this process alone."""
    for kind in (TorchElasticEnvironment, SLURMEnvironment):
        if kind.detect():
            environment: ClusterEnvironment = kind()
            return environment if environment.world_size() > 1 else None
    return None


def local_processes() -> int:
    """How many processes the launcher has started on this machine."""
    told = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or "1"
    return int(told) if _environment() is not None else 1


@contextmanager
def launched() -> Iterator[torch.device]:
    """A block in which the processes that a launcher has started are a group; yields this one's device."""
    on_gpu = torch.cuda.is_available()
    environment = _environment()
    if environment is None:
        yield torch.device("cuda" if on_gpu else "cpu")
        return
    device = (
        torch.device("cuda", environment.local_rank() % torch.cuda.device_count()) if on_gpu else torch.device("cpu")
    )
    if on_gpu:
        torch.cuda.set_device(device)
    # As Lightning has it: both launchers tell these, srun by other names.
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
    rank, world_size = environment.global_rank(), environment.world_size()
    dist.init_process_group("nccl" if on_gpu else "gloo", rank=rank, world_size=world_size)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def once_a_machine(work: Callable[[], object]) -> None:
    """Have the first process of every machine do something, while the others wait for however long that takes.

    Raises:
        ElsewhereError: it has failed in another process. The first that has failed raises its own error.
    """
    environment = _environment()
    if environment is None or world()[1] == 1:
        work()
        return
    group = dist.new_group(backend="gloo", timeout=_WAITING)
    with together(group):
        if not environment.local_rank():
            work()
    dist.destroy_process_group(group)

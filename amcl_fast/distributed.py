"""Candidates from every process, with the gradient that this needs."""

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> tuple[int, int]:
    """(rank, world size) of the default process group; (0, 1) without one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather_rows(x: Tensor) -> Tensor:
    """Rows of all processes, (C, n, d) → (C, world size · n, d), in order of rank.

    The backward pass SUMS every process's gradient of this process's rows: each used them as candidates. All
    processes must pass the same shape.
    """
    # Imported on use: a build of torch without distributed support can still use the losses.
    from torch.distributed.nn.functional import all_gather

    return torch.cat(list(all_gather(x.contiguous())), dim=1)

"""Candidates from every process, with the gradient that this needs."""

from typing import Any

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
    return _GatherRows.apply(x.transpose(0, 1)).transpose(0, 1)


class _GatherRows(torch.autograd.Function):
    """all_gather along dim 0.

    torch.distributed.nn.functional.all_gather is not used: outside NCCL its backward pass receives into
    `empty_like(gradient)`, which scrambles gradients that are dense but not contiguous (torch 2.11).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gathered = x.new_empty(dist.get_world_size() * x.shape[0], *x.shape[1:])
        dist.all_gather_into_tensor(gathered, x.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        own = gradient.new_empty(gradient.shape[0] // dist.get_world_size(), *gradient.shape[1:])
        dist.reduce_scatter_tensor(own, gradient.contiguous())
        return own

"""Candidates from every process, with the gradient that this needs."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

if dist.is_available():
    # Before a process group exists: this module's defaults are the group of the moment. Imported later (torch._dynamo
    # does), they keep a destroyed group's threads alive, and one that still frees a tensor while the interpreter
    # ends aborts the process (gloo, torch 2.11).
    import torch.distributed.nn


def world() -> tuple[int, int]:
    """(rank, world size) of the default process group; (0, 1) without one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def row_counts(x: Tensor) -> list[int]:
    """Rows n of x (C, n, d) in every process, in order of rank. The host waits for these few bytes.

    Raises:
        ValueError: C or d differ between processes.
    """
    own = torch.tensor([x.shape], device=x.device)
    shapes = own.new_empty(dist.get_world_size(), x.dim())
    dist.all_gather_into_tensor(shapes, own)
    by_rank: list[list[int]] = shapes.tolist()
    if any((c, d) != (x.shape[0], x.shape[2]) for c, _, d in by_rank):
        raise ValueError(f"processes must agree on heads C and width d, their shapes (C, n, d) are {by_rank}")
    return [n for _, n, _ in by_rank]


def gather_rows(x: Tensor, counts: list[int] | None = None) -> Tensor:
    """Rows of all processes, (C, n, d) → (C, Σ n, d), in order of rank; n may differ between processes.

    The backward pass SUMS every process's gradient of this process's rows: each used them as candidates.

    Args:
        x: rows of this process.
        counts: `row_counts(x)`, if known already.
    """
    counts = row_counts(x) if counts is None else counts
    return _GatherRows.apply(x.transpose(0, 1), counts).transpose(0, 1)


class _GatherRows(torch.autograd.Function):
    """all_gather along dim 0, with shorter blocks padded to the longest.

    torch.distributed.nn.functional.all_gather is not used: outside NCCL its backward pass receives into
    `empty_like(gradient)`, which scrambles gradients that are dense but not contiguous (torch 2.11).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        longest = max(counts)
        blocks = x.new_empty(len(counts) * longest, *x.shape[1:])
        dist.all_gather_into_tensor(blocks, _padded(x, longest).contiguous())
        if min(counts) == longest:
            return blocks
        return torch.cat([block[:n] for block, n in zip(blocks.split(longest), counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        longest = max(ctx.counts)
        if min(ctx.counts) < longest:
            gradient = torch.cat([_padded(block, longest) for block in gradient.split(ctx.counts)])
        own = gradient.new_empty(longest, *gradient.shape[1:])
        dist.reduce_scatter_tensor(own, gradient.contiguous())
        return own[: ctx.counts[dist.get_rank()]], None


def _padded(x: Tensor, rows: int) -> Tensor:
    """`x` with zeros below it, up to `rows` rows."""
    return F.pad(x, (0, 0) * (x.dim() - 1) + (0, rows - len(x)))

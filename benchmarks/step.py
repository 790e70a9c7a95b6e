"""A step: forward and backward pass of an implementation."""

from collections.abc import Callable

import torch
from torch import Tensor

from .cases import Operands, Run


def distinct(operands: Operands) -> list[Tensor]:
    """The tensors among the operands, each once."""
    return list({id(t): t for t in operands if t is not None}.values())


def step_of(run: Run, sets: list[Operands]) -> Callable[[], tuple[Tensor | None, ...]]:
    """Forward and backward pass on each set of operands in turn: one set alone might stay in the cache."""
    count = 0

    def step() -> tuple[Tensor | None, ...]:
        nonlocal count
        operands = sets[count % len(sets)]
        count += 1
        leaves = [t for t in distinct(operands) if t.requires_grad]
        return torch.autograd.grad(run(*operands).mean(), leaves)

    return step


def gradient_bytes(operands: Operands) -> int:
    """Bytes of a step's gradients, which are no extra memory."""
    return sum(t.nbytes for t in distinct(operands) if t.requires_grad)

"""Rows of any finite size: the one division of a row by its norm, and what keeps its squares inside float32."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

# Squares of what is no larger, and sums of millions of them, are far inside float32; 1e12.
LARGEST = 2.0**40


def transformed() -> bool:
    """Whether this call is part of a torch.func transform or of forward-mode differentiation."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


# torch.compile asks while it traces, and guards on both.
transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def may_look(x: Tensor) -> bool:
    """Whether Python may read a value made of `x`: on other devices it would wait, in compiled code break the graph."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not transformed()


def bounded(x: Tensor) -> Tensor:
    """Rows x (..., d), those that hold a larger number than `LARGEST` scaled down to it; others keep their bits.

    For what does not change with the size of a row, or no more at that size, but is made of squares and sums, which
    overflow (in float32, from 1e19 on).
    """
    if may_look(x) and float(torch.linalg.vector_norm(x.detach())) <= LARGEST:
        return x
    return x * (LARGEST / x.detach().abs().amax(-1, keepdim=True)).clamp(max=1)


def unit(x: Tensor) -> Tensor:
    """x / max(‖x‖, 1e-12) along the last dimension, as torch.nn.functional.normalize, for rows of any finite size.

    The gradient of a row is that of its direction divided by max(‖x‖, 1e-12): for a row of zeros at most 1e12 times as
    large.
    """
    return F.normalize(bounded(x), dim=-1)

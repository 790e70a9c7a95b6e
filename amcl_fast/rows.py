"""Rows of any finite size: the one division of a row by its norm, and what keeps its squares inside float32."""

import math
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

# Squares of what is no larger, and sums of millions of them, are far inside float32; 1e12.
LONGEST = 2.0**40


def transformed() -> bool:
    """Whether this call is part of a torch.func transform or of forward-mode differentiation."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


# torch.compile asks while it traces, and guards on both.
transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def may_look(x: Tensor) -> bool:
    """Whether Python may read a value made of `x`: on other devices it would wait, in compiled code break the graph.

    A fake tensor, of a device that it only says it is on, has none.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling() or transformed():
        return False
    return not isinstance(x, FakeTensor)


T = TypeVar("T", Tensor, Tensor | None)


def savable(*tensors: T) -> tuple[T, ...]:
    """`tensors`, with copies of those that were made in inference mode where autograd, which is on, saves none."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return tensors
    return tuple(x.clone() if x is not None and x.is_inference() else x for x in tensors)


def bounded(x: Tensor) -> Tensor:
    """Rows x (..., d), those that hold a larger number than `LONGEST` scaled down to it; others keep their bits.

    For what does not change with the size of a row, or no more at that size, but is made of squares and sums, which
    overflow (in float32, from 1e19 on).
    """
    if may_look(x) and float(torch.linalg.vector_norm(x.detach())) <= LONGEST:
        return x
    return x * (LONGEST / x.detach().abs().amax(-1, keepdim=True)).clamp(max=1)


def unit(x: Tensor) -> Tensor:
    """x / max(‖x‖, 1e-12) along the last dimension, as torch.nn.functional.normalize, for rows of any finite size.

    The gradient of a row is that of its direction divided by max(‖x‖, 1e-12): for a row of zeros at most 1e12 times as
    large.
    """
    return F.normalize(bounded(x), dim=-1)


def standardised(x: Tensor) -> Tensor:
    """Channel vectors (C, d, N) with zero mean and unit (unbiased) standard deviation along the batch."""
    centred = x - x.mean(-1, keepdim=True)
    # What rounding left in the mean: for a channel of nearly equal values it is as large as their deviation.
    centred = centred - centred.detach().mean(-1, keepdim=True)
    # The same as x.std, which takes several times as long on a CPU.
    deviation = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / math.sqrt(x.shape[-1] - 1)
    return centred * (deviation + 1e-9).reciprocal()


class Prepared(NamedTuple):
    """Rows as operators take them, made of paired rows x and y, (C, N, d) each; what was not asked for is None.

    Attributes:
        table: (C, 2N, d), float32 or better, the rows of x, then those of y.
        product: the same in the dtype of the products.
        first, second: (C, N, d), float32 or better, the halves.
        skip: (2N, 2) int64, the columns of a row itself and of its partner.
    """

    table: Tensor | None
    product: Tensor | None
    first: Tensor | None
    second: Tensor | None
    skip: Tensor | None


def prepared(
    x: Tensor,
    y: Tensor | None,
    *,
    product: torch.dtype | None = None,
    factor: float = 1.0,
    normalise: bool = True,
    table: bool = False,
    halves: str = "none",
    skip: int | None = None,
) -> Prepared:
    """Rows of two views, or of one table that holds both, ready for the operators.

    Args:
        x, y: (C, N, d); or y None, and x (C, 2N, d) the table, which may have any number of rows without `halves`.
        product: dtype of the table that products read; None for none.
        factor: of the rows in the tables.
        normalise: divide rows by max(‖·‖, 1e-12); else the tables hold them as they are.
        table: the float32 table is needed.
        halves: "raw", as given, but in float32; "ready", as in the table; or "none".
        skip: the column of the first row among all candidates, if the columns to be skipped are needed.
    """
    raw = at_least_float32(x if y is None else torch.cat([x, y], dim=1))
    whole = unit(raw) if normalise else raw
    if factor != 1:
        whole = factor * whole
    first = second = skipped = None
    if halves != "none":
        n = raw.shape[1] // 2
        of = raw if halves == "raw" else whole
        first, second = of[:, :n], of[:, n:]
    if skip is not None:
        own = torch.arange(raw.shape[1], device=raw.device)
        skipped = skip + torch.stack([own, (own + len(own) // 2) % len(own)], dim=1)
    return Prepared(whole, None if product is None else whole.to(product), first, second, skipped)


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in the dtype in which losses are evaluated."""
    return x.to(widened(x.dtype))


def widened(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which losses are evaluated: float64 stays, all else is float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32

"""What the backends' torch.library operators share: they return tensors only, so absent ones need a stand-in."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference import Stats

# Order of a backend's statistics; the keys of `reference.stats`.
_STATS = ("similarity", "tau_mean", "tau_std", "tau_min", "tau_at_bound")


def named(summary: Tensor) -> Stats:
    """Statistics (5,) by name, detached."""
    return dict(zip(_STATS, summary.detach().unbind(), strict=True))


class _Final(torch.autograd.Function):
    """The identity of a gradient that cannot be differentiated, which stands between it and what it was made of."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise NotImplementedError("this backend has no second derivative; backend='reference' has")


def once(backward: Callable[..., tuple[Tensor | None, ...]]) -> Callable[..., tuple[Tensor | None, ...]]:
    """`backward` of an operator, whose results raise where they are differentiated.

    torch.autograd.function.once_differentiable does so only if the gradient it is given is differentiated as well.
    """

    @functools.wraps(backward)
    def first_only(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            gradients = backward(ctx, *given)
        if not torch.is_grad_enabled():  # no create_graph
            return gradients
        sources = [t for t in (*ctx.saved_tensors, *given) if t is not None and t.requires_grad]
        return tuple(None if g is None else _Final.apply(g, *sources) for g in gradients)

    return first_only


def stand_ins(like: Tensor, tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """`tensors`, an empty one of the dtype of `like` for each None."""
    return [like.new_empty(0) if tensor is None else tensor for tensor in tensors]


def needed(*tensors: Tensor | None) -> list[bool]:
    """Of which tensors a backward pass will want the gradient."""
    return [torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in tensors]


def masked(tensors: Sequence[Tensor | None], there: Sequence[bool]) -> list[Tensor | None]:
    """`tensors`, None where they are not `there`: the inverse of `stand_ins`."""
    return [tensor if given else None for tensor, given in zip(tensors, there, strict=True)]


def present(tensor: Tensor | None) -> Tensor | None:
    """None for the stand-in of an absent tensor. No result has one dimension and no element but these."""
    return None if tensor is None or (tensor.dim() == 1 and tensor.shape[0] == 0) else tensor


def contiguous(tensor: Tensor) -> Tensor:
    """An empty tensor like `tensor`, whose strides may overlap or have gaps."""
    return tensor.new_empty(tensor.shape)


def scaled(
    gradients: Sequence[Tensor | None], by_head: Tensor, dtypes: Sequence[torch.dtype | None]
) -> list[Tensor | None]:
    """Gradients of each head's value, times the gradient of that value, in `dtypes`.

    Args:
        gradients: of tables (C, …), and of the offset one for each head, (C,).
        by_head: (C,).
        dtypes: of the results.
    """
    result: list[Tensor | None] = []
    for t, dtype in zip(gradients, dtypes, strict=True):
        if t is None:
            result.append(None)
        elif t.dim() == 1:
            result.append((t * by_head).sum().to(dtype))
        else:
            # One pass; bfloat16 was rounded when it was stored as well.
            out = t.new_empty(t.shape, dtype=dtype)
            result.append(torch.mul(t, by_head[:, None, None], out=out))
    return result

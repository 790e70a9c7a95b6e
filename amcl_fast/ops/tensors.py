"""What the backends' torch.library operators share: they return tensors only, so absent ones need a stand-in."""

from collections.abc import Sequence

from torch import Tensor

from ..reference import Stats

# Order of a backend's statistics; the keys of `reference.stats`.
_STATS = ("similarity", "tau_mean", "tau_std", "tau_min", "tau_at_bound")


def named(summary: Tensor) -> Stats:
    """Statistics (5,) by name, detached."""
    return dict(zip(_STATS, summary.detach().unbind(), strict=True))


def stand_ins(like: Tensor, tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """`tensors`, an empty one of the dtype of `like` for each None."""
    return [like.new_empty(0) if tensor is None else tensor for tensor in tensors]


def masked(tensors: Sequence[Tensor | None], present: Sequence[bool]) -> list[Tensor | None]:
    """`tensors`, None where they are not `present`: the inverse of `stand_ins`."""
    return [tensor if there else None for tensor, there in zip(tensors, present, strict=True)]


def fake_gradients(like: Tensor, tensors: Sequence[Tensor | None], needs: Sequence[bool]) -> tuple[Tensor, ...]:
    """Fake gradients of `tensors`, contiguous, after `stand_ins`."""
    return tuple(
        like.new_empty(0) if t is None or not need else t.new_empty(t.shape)
        for t, need in zip(tensors, needs, strict=True)
    )

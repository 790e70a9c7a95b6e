"""MoCo's key encoder and its queue of keys (arXiv 1911.05722)."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import checks
from ..setting_types import WIDEST, fits_memory, real, whole


class MomentumEncoder(nn.Module):
    """Modules in a row whose weights are a moving average of those of others, which they start as copies of.

    Running statistics of BatchNorm are not averaged: they come from the copies' own forward passes. Stochastic depth
    (drop path) is for what is trained: the copies keep all of their branches.

    Args:
        sources: modules to copy, applied one after the other.
        momentum: share m of the old average that an update keeps, 0 ≤ m ≤ 1.
    """

    def __init__(self, *sources: nn.Module, momentum: float) -> None:
        super().__init__()
        self.momentum = real("momentum", momentum, 0, 1)
        self.copies = nn.Sequential(*copy.deepcopy(sources)).requires_grad_(False)
        for module in self.copies.modules():
            if type(module).__name__ == "DropPath":  # timm's
                module.drop_prob = 0.0  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """What the copies, one after the other, make of `x`; MoCo's make keys (n, C, d) of images (n, 3, H, W)."""
        return self.copies(x)

    @torch.no_grad()
    def update(self, *sources: nn.Module) -> None:
        """average ← m·average + (1 − m)·source for every parameter, in one call for all of them."""
        current = [parameter for source in sources for parameter in source.parameters()]
        # Integers of a user's own module, which nothing trains, stay.
        pairs = [pair for pair in zip(self.copies.parameters(), current, strict=True) if pair[0].is_floating_point()]
        averages, sources_of = (list[Tensor](of) for of in zip(*pairs, strict=True))
        torch._foreach_lerp_(averages, sources_of, 1 - self.momentum)


class KeyQueue(nn.Module):
    """Ring of the latest K keys of each head; random unit vectors until keys have come.

    A batch overwrites the oldest keys in place, so whatever a backward pass still needs of the queue must have
    been used before: autograd raises an error otherwise.

    Args:
        heads: number of heads C.
        size: number of keys K.
        dim: width d of the keys.

    Attributes:
        keys: (C, K, d), L2-normalised. Not in the order of their age.
        written: number of keys that have ever come; the next one goes to place `written` mod K. It is a
            number on the host, since a step that read it from a GPU would wait for it, and travels in the
            state dict.
    """

    keys: Tensor

    def __init__(self, heads: int, size: int, dim: int) -> None:
        super().__init__()
        shape = whole("heads", heads, 1, WIDEST), whole("queue_size", size, 1, WIDEST), whole("dim", dim, 1, WIDEST)
        # A generator of its own: every process starts with the same queue, whatever its seed.
        with fits_memory(queue_size=size, heads=heads, dim=dim):
            start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        self.register_buffer("keys", F.normalize(start, dim=-1))
        self.written = 0

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Put L2-normalised keys (C, n, d), n ≤ K, in the place of the oldest.

        Raises:
            ValueError, TypeError: they are no such tensor.
        """
        checks.tensor("keys", keys)
        heads, _, dim = self.keys.shape
        if keys.dim() != 3 or (keys.shape[0], keys.shape[2]) != (heads, dim):
            raise ValueError(f"keys must have the shape (C, n, d) = ({heads}, n, {dim}), got {tuple(keys.shape)}")
        n, size = keys.shape[1], self.keys.shape[1]
        if n > size:
            raise ValueError(f"queue_size must be at least the {n} keys of one batch over all processes, got {size}")
        start = self.written % size
        before_end = min(n, size - start)
        self.keys[:, start : start + before_end] = keys[:, :before_end]
        self.keys[:, : n - before_end] = keys[:, before_end:]
        self.written += n

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.written)

    def set_extra_state(self, state: Tensor) -> None:
        self.written = int(state)

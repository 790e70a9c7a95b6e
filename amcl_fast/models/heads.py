"""Projection heads, all C of them in one product per layer."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ProjectorConfig:
    """Multi-head projector.

    Attributes:
        heads: number of heads C.
        hidden_dim: hidden width of each head.
        dim: width d of the projections.
        batch_norm: BatchNorm after both linear layers, as in SimCLR's official head. Without the last one, all
            projections share one direction at first; a loss over the hardest negatives then finds negatives
            closer than positives, and its cheapest way down is to make all projections equal.
    """

    heads: int = 3
    hidden_dim: int = 512
    dim: int = 128
    batch_norm: bool = False


class MultiHeadLinear(nn.Module):
    """C independent linear layers, (C, n, in_features) to (C, n, out_features), in one batched product.

    Each head is initialised as its own nn.Linear would be.
    """

    def __init__(self, heads: int, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = in_features**-0.5
        self.weight = nn.Parameter(torch.empty(heads, in_features, out_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(heads, 1, out_features).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class MultiHeadProjector(nn.Module):
    """Linear, ReLU, Linear per head, with or without BatchNorm; features (n, feature_dim) to projections (n, C, d).

    All heads read the same features, so their first layers are one Linear.
    """

    def __init__(self, feature_dim: int, config: ProjectorConfig) -> None:
        super().__init__()
        for name in ("heads", "hidden_dim", "dim"):
            if getattr(config, name) < 1:
                raise ValueError(f"projector.{name} must be at least 1, got {getattr(config, name)}")
        hidden, dim = config.heads * config.hidden_dim, config.heads * config.dim
        self.heads = config.heads
        self.input = nn.Linear(feature_dim, hidden)
        self.input_norm = nn.BatchNorm1d(hidden) if config.batch_norm else nn.Identity()
        self.output = MultiHeadLinear(config.heads, config.hidden_dim, config.dim)
        self.output_norm = nn.BatchNorm1d(dim) if config.batch_norm else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        hidden = torch.relu(self.input_norm(self.input(features)))
        by_head = hidden.unflatten(1, (self.heads, -1)).transpose(0, 1)
        projections = self.output(by_head).transpose(0, 1)
        return self.output_norm(projections.flatten(1)).unflatten(1, (self.heads, -1))

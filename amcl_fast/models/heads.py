"""Projection and prediction heads, all C of them in one product per layer."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..setting_types import WIDEST, check_fields, fits_memory, whole

MOST_LAYERS = 100
"""Of a head, and blocks of a decoder."""


@dataclass(frozen=True)
class ProjectorConfig:
    """Multi-head projector.

    Attributes:
        heads: number of heads C.
        hidden_dim: hidden width of each head.
        dim: width d of the projections.
        batch_norm: BatchNorm after every linear layer, as in SimCLR's official head. Without the last one, all
            projections share one direction at first; a loss over the hardest negatives then finds negatives
            closer than positives, and its cheapest way down is to make all projections equal
            (docs/training.md). A loss over all negatives, as `SimCLRLoss.recommended`, leaves that state.
        layers: linear layers, at most 100; 2 for SimCLR and MoCo, 3 for SimSiam and Barlow Twins.
        output_affine: whether the last BatchNorm has a learned scale and shift; SimSiam's has none.

    Raises:
        TypeError: a setting of another type.
    """

    heads: int = 3
    hidden_dim: int = 512
    dim: int = 128
    batch_norm: bool = False
    layers: int = 2
    output_affine: bool = True

    def __post_init__(self) -> None:
        check_fields(self, "projector")


class MultiHeadLinear(nn.Module):
    """C independent linear layers, (C, n, in_features) to (C, n, out_features), in one batched product.

    Each head is initialised as its own nn.Linear would be.
    """

    def __init__(self, heads: int, in_features: int, out_features: int) -> None:
        super().__init__()
        for name, size in (("heads", heads), ("in_features", in_features), ("out_features", out_features)):
            whole(name, size, 1, WIDEST)
        bound = in_features**-0.5
        self.weight = nn.Parameter(torch.empty(heads, in_features, out_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(heads, 1, out_features).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)

    def side_by_side(self, x: Tensor) -> Tensor:
        """The same with the heads beside one another, (n, C·in_features) to (n, C·out_features).

        BatchNorm reads and gives this layout.
        """
        by_head = x.unflatten(1, (len(self.weight), -1)).transpose(0, 1)
        return self(by_head).transpose(0, 1).flatten(1)


class MultiHeadProjector(nn.Module):
    """Perceptron of 2 or more layers per head, ReLU between them; features (n, feature_dim) to (n, C, d).

    All heads read the same features, so their first layers are one Linear.
    """

    def __init__(self, feature_dim: int, config: ProjectorConfig) -> None:
        super().__init__()
        sizes = ("heads", "hidden_dim", "dim")
        heads, hidden, dim = (whole(f"projector.{name}", getattr(config, name), 1, WIDEST) for name in sizes)
        whole("projector.layers", config.layers, 2, MOST_LAYERS)
        between = range(config.layers - 2)

        def norm(width: int, affine: bool = True) -> nn.Module:
            return nn.BatchNorm1d(heads * width, affine=affine) if config.batch_norm else nn.Identity()

        self.heads = heads
        self.dim = dim
        with fits_memory(**{f"projector.{name}": getattr(config, name) for name in (*sizes, "layers")}):
            self.input = nn.Linear(feature_dim, heads * hidden)
            self.input_norm = norm(hidden)
            self.hidden = nn.ModuleList(MultiHeadLinear(heads, hidden, hidden) for _ in between)
            self.hidden_norms = nn.ModuleList(norm(hidden) for _ in between)
            self.output = MultiHeadLinear(heads, hidden, dim)
            self.output_norm = norm(dim, config.output_affine)

    def forward(self, features: Tensor) -> Tensor:
        """Projections (n, C, d) of features (n, feature_dim)."""
        x = torch.relu(self.input_norm(self.input(features)))
        for linear, norm in zip(self.hidden, self.hidden_norms, strict=True):
            x = torch.relu(norm(linear.side_by_side(x)))  # type: ignore[operator]
        return self.output_norm(self.output.side_by_side(x)).unflatten(1, (self.heads, -1))


class MultiHeadPredictor(nn.Module):
    """SimSiam's predictor per head (arXiv 2011.10566): Linear, BatchNorm, ReLU, Linear; (n, C, d) to (n, C, d).

    Args:
        heads: number of heads C.
        dim: width d of projections and predictions.
        hidden_dim: hidden width of each head.
    """

    def __init__(self, heads: int, dim: int, hidden_dim: int) -> None:
        super().__init__()
        whole("predictor_hidden_dim", hidden_dim, 1, WIDEST)
        with fits_memory(predictor_hidden_dim=hidden_dim, heads=heads, dim=dim):
            self.input = MultiHeadLinear(heads, dim, hidden_dim)
            self.input_norm = nn.BatchNorm1d(heads * hidden_dim)
            self.output = MultiHeadLinear(heads, hidden_dim, dim)

    def forward(self, projections: Tensor) -> Tensor:
        """Predictions (n, C, d) of projections (n, C, d)."""
        x = torch.relu(self.input_norm(self.input.side_by_side(projections.flatten(1))))
        return self.output.side_by_side(x).unflatten(1, projections.shape[1:])

"""A framework of your own: VICReg (arXiv 2105.04906) as a subclass of `Method`, trained with all that comes with a run.

A subclass says what its loss is of the views of a batch; encoder, heads, optimiser, schedule, precision, logging, kNN,
checkpoints, exact resume and report are those of every run. With `pairs` as well, the report shows what the loss saw.

    python examples/own_framework.py --epochs 2
    PYTHONPATH=examples amcl-fast pretrain --model own_framework.VICReg --data builtin --trainer.max_epochs 2
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amcl_fast import pretrain
from amcl_fast.methods import Method, Pairs


class VICRegLoss(nn.Module):
    """Invariance, variance and covariance of two projections (n, d), Eq. 6 of the paper.

    Args:
        invariance, variance, covariance: weights λ, μ and ν of the three terms.
    """

    def __init__(self, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0) -> None:
        super().__init__()
        self.weights = invariance, variance, covariance
        self.last_stats: dict[str, Tensor] = {}  # optional: what stands here is logged

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        terms = F.mse_loss(x, y), self._variance(x) + self._variance(y), self._covariance(x) + self._covariance(y)
        self.last_stats = dict(zip(("invariance", "variance", "covariance"), map(Tensor.detach, terms), strict=True))
        return sum(weight * term for weight, term in zip(self.weights, terms, strict=True))  # type: ignore[return-value]

    @staticmethod
    def _variance(z: Tensor) -> Tensor:
        return F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()

    @staticmethod
    def _covariance(z: Tensor) -> Tensor:
        off_diagonal = torch.cov(z.T).fill_diagonal_(0)
        return off_diagonal.square().sum() / z.shape[1]


class VICReg(Method):
    """VICReg of one head.

    Args:
        invariance, variance, covariance: weights of the terms, settings of the command line like any other.
        kwargs: see `Method`.
    """

    def __init__(
        self, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(VICRegLoss(invariance, variance, covariance), **kwargs)

    def loss(self, views: Sequence[Tensor]) -> Tensor:
        x, y = self.encode(views)  # (n, C, d) each, C heads
        return self.criterion(x[:, 0].float(), y[:, 0].float())

    def pairs(self, views: Sequence[Tensor]) -> Pairs:
        """For the report: cosine similarities; VICReg knows no temperature, so it is 1."""
        x, y = (F.normalize(z[:, 0].float(), dim=-1) for z in self.encode(views, self.embed))
        similarity = (x @ y.T)[None].detach()
        others = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
        positive, negative = similarity.diagonal(dim1=1, dim2=2), similarity[:, others].unflatten(1, (len(x), -1))
        return Pairs(positive, torch.ones_like(positive), negative, torch.ones_like(negative))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--run_dir")
    arguments = parser.parse_args()
    print(
        pretrain(
            data=arguments.data,
            method=VICReg,
            epochs=arguments.epochs,
            batch_size=128,
            lr=0.03,
            run_dir=arguments.run_dir,
            trainer={"accelerator": "auto", "log_every_n_steps": 5},
            model={"backbone": {"stem": "small", "width": 16}, "projector": {"heads": 1, "dim": 128}},
        )
    )

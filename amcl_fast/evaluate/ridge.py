"""Ridge regression on frozen features: a linear probe in closed form, which no learning rate and no seed decides."""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..distributed import apart, world
from .features import check_features

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""λ per training image, of features whose variance is 1."""

HELD_OUT = 10
"""Every so manieth image of the bank, the last of each ten, chooses the penalty."""

_USUAL = 1e-2
"""Where the bank is too small to hold out any image."""

_ROWS = 1 << 13


class Ridge(NamedTuple):
    """Accuracy in percent on the queries, and the penalty that was chosen, of `PENALTIES`."""

    accuracy: float
    penalty: float


@torch.no_grad()
def ridge_probe(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    num_classes: int,
    shared: bool = False,
) -> Ridge:
    """Share of the queries, in percent, whose class a ridge regression on one-hot targets finds.

    Features are standardised with mean and variance of the bank; one regression a class, W = (XᵀX + λnI)⁻¹Xᵀ(Y − Ȳ),
    each with an intercept, and the largest answer is the class (one-vs-rest). λ is the one of `PENALTIES` with the
    highest accuracy on a held-out tenth of the bank, of equal ones the largest, by regressions on the other nine
    tenths; then all of the bank is used. In float64, on the device of the features.

    Args:
        bank: (B, d) features with known classes.
        bank_labels: (B,) int64, 0 to num_classes - 1.
        queries: (Q, d) features.
        query_labels: (Q,) int64, 0 to num_classes - 1.
        num_classes: number of classes.
        shared: bank and queries are this process's parts, as in `knn_accuracy`; each process holds out a tenth of its
            own.

    Raises:
        TypeError: features are not floating point or labels not int64.
        ValueError: labels out of range, features that are not finite.
        ElsewhereError: what another process has given cannot be used.
    """
    several = shared and world()[1] > 1
    with apart(several):
        check_features("bank", bank, "bank_labels", bank_labels, num_classes, part=several)
        check_features("queries", queries, "query_labels", query_labels, num_classes, part=several)
    count = _sum(bank.new_tensor([len(bank)], dtype=torch.float64), several)
    mean = _sum(bank.sum(0, dtype=torch.float64), several) / count
    moment = sum((part.double() - mean).square().sum(0) for part in bank.split(_ROWS)) + torch.zeros_like(mean)
    deviation = (_sum(moment, several) / count).sqrt()
    scale = torch.where(deviation > 0, deviation, 1.0).reciprocal()

    held_out = torch.arange(len(bank), device=bank.device) % HELD_OUT == HELD_OUT - 1
    of_rest = _moments(bank[~held_out], bank_labels[~held_out], mean, scale, num_classes, several)
    of_held_out = _moments(bank[held_out], bank_labels[held_out], mean, scale, num_classes, several)
    penalty = _USUAL
    if float(of_held_out[3]) and float(of_rest[3]):
        found = [
            _accuracy(_classifier(of_rest, value), bank[held_out], bank_labels[held_out], mean, scale, several)
            for value in PENALTIES
        ]
        penalty = max(zip(found, PENALTIES, strict=True))[1]
    whole = [a + b for a, b in zip(of_rest, of_held_out, strict=True)]
    accuracy = _accuracy(_classifier(whole, penalty), queries, query_labels, mean, scale, several)
    return Ridge(accuracy, penalty)


def _sum(values: Tensor, several: bool) -> Tensor:
    if several:
        dist.all_reduce(values)
    return values


def _moments(
    rows: Tensor, labels: Tensor, mean: Tensor, scale: Tensor, num_classes: int, several: bool
) -> list[Tensor]:
    """Σ xxᵀ (d, d), Σ xyᵀ (d, K), Σ [x; y] (d + K,) and n of standardised rows x, y one-hot."""
    d = len(mean)
    of_x, of_both, sums = mean.new_zeros(d, d), mean.new_zeros(d, num_classes), mean.new_zeros(d + num_classes)
    for part, truth in zip(rows.split(_ROWS), labels.split(_ROWS), strict=True):
        x = (part.double() - mean) * scale
        y = F.one_hot(truth, num_classes).double()
        of_x += x.T @ x
        of_both += x.T @ y
        sums += torch.cat([x.sum(0), y.sum(0)])
    return [_sum(of, several) for of in (of_x, of_both, sums, mean.new_tensor([len(rows)]))]


def _classifier(moments: list[Tensor], penalty: float) -> tuple[Tensor, Tensor]:
    """Weights (d, K) and intercepts (K,)."""
    of_x, of_both, sums, count = moments
    x, y = sums[: len(of_x)] / count, sums[len(of_x) :] / count
    gram = of_x - count * torch.outer(x, x)
    gram.diagonal().add_(penalty * count)
    weight = torch.cholesky_solve(of_both - count * torch.outer(x, y), torch.linalg.cholesky(gram))
    return weight, y - x @ weight


def _accuracy(
    classifier: tuple[Tensor, Tensor], rows: Tensor, labels: Tensor, mean: Tensor, scale: Tensor, several: bool
) -> float:
    weight, intercept = classifier
    right = mean.new_zeros(2)
    for part, truth in zip(rows.split(_ROWS), labels.split(_ROWS), strict=True):
        found = torch.addmm(intercept, (part.double() - mean) * scale, weight).argmax(1)
        right += torch.stack([(found == truth).sum(), torch.ones_like(truth).sum()])
    hits, asked = _sum(right, several).tolist()
    return 100 * hits / asked

"""The three operators of AMCL in plain PyTorch: the oracle of every backend, and the last fallback.

Source: Wang et al., "Adaptive Multi-head Contrastive Learning", ECCV 2024 (arXiv 2310.05615); equation
numbers are the paper's. Every backend implements the same four signatures:

- `contrast`     the negative term of SimCLR and MoCo (Eq. 1.1, 1.4, 2.1, 2.4),
- `calibrate`    temperatures of anchors at which their negatives have a given perplexity (docs/temperatures.md),
- `align`        a row-wise attraction: SimSiam (Eq. 1.2, 2.2), and the positive term of the contrast,
- `decorrelate`  Barlow Twins (Eq. 1.3, 2.3).

Tensors are head-first, (C, rows, d); all floating tensors of one call share a device and a dtype: float32 or float64,
or bfloat16 or float16, to which everything is rounded then. Temperatures enter as φ's outputs, already scaled, so that
τ needs one product of two rows:

    r_ij = phi_x_i · phi_y_j − offset        τ_ij = tau_min + (tau_max − tau_min)·σ(−r_ij)

`phi_x = phi_y = None` is a constant temperature τ = tau_min = tau_max. Its regulariser Ω(τ) is a constant too,
so it is left out (β counts as 0): the baselines of the paper have none. `contrast` takes a temperature per anchor in
place of both, as a tensor.

This module may be dense in rows × candidates, never in rows × candidates × d. It refuses the settings that
every backend refuses, since it is called on its own as well (`amcl_fast.ops` has then asked before); tensors are
checked where a backend is chosen, by `amcl_fast.ops`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import operator_settings
from .operator_settings import NEGATIVES as NEGATIVES
from .rows import at_least_float32, unit

__all__ = ["Chosen", "align", "calibrate", "contrast", "decorrelate", "omega"]

Stats = dict[str, Tensor]


class Chosen(NamedTuple):
    """The set T of every anchor, as a call of `calibrate` has found it, for a call of `contrast` with the same tables.

    Attributes:
        similarities: (C, A, κ), detached, float32 or better.
        columns: (C, A, κ) int32, of the candidates.
    """

    similarities: Tensor
    columns: Tensor


# τ counts as "at a bound" within this share of its range. σ(−r) = 0.01 leaves a hundredth of φ's gradient.
BOUND_SHARE = 0.01


def omega(tau: Tensor, dim: int) -> Tensor:
    """Ω(τ) = (d/2)·log τ + 1/τ, the regulariser of the temperature (Eq. 2); `dim` is d."""
    return 0.5 * dim * tau.log() + tau.reciprocal()


def contrast(
    anchors: Tensor,
    candidates: Tensor,
    phi_anchors: Tensor | None,
    phi_candidates: Tensor | None,
    offset: Tensor | None,
    skip: Tensor | None,
    *,
    tau_min: float,
    tau_max: float,
    negatives: str,
    top_k: int | None,
    beta: float,
    extra: Tensor | None = None,
    tau: Tensor | None = None,
    chosen: Chosen | None = None,
) -> tuple[Tensor, Stats]:
    """Negative term of every anchor and head (Eq. 2.1 and 2.4; `topk_mean` is the released code's form).

    Over the set T of the min(top_k, negatives) candidates of largest similarity s (ties: lowest column):

    - `topk_mean`     mean_T(s/τ) − β·Σ_T(log τ + 1/τ)
    - `topk_softmax`  log Σ_T exp(s/τ − β·Ω(τ))
    - `softmax`       the same over all negatives; `top_k` is ignored

    The last two may have one more logit `extra` in their sum: the positive, in InfoNCE.

    Args:
        anchors: (C, A, d), L2-normalised.
        candidates: (C, B, d), L2-normalised.
        phi_anchors, phi_candidates: (C, A, m) and (C, B, m), or both None for a constant temperature.
        offset: 0-dim tensor subtracted from every r, or None.
        skip: (A, S) int64, for each anchor the S distinct candidate columns that are not negatives of it; None
            if all B are.
        tau_min, tau_max: range of τ.
        negatives: one of `NEGATIVES`.
        top_k: κ ≥ 1.
        beta: β, weight of the regulariser.
        extra: (C, A), a logit that joins the log-sum-exp of its anchor, or None; not with `topk_mean`.
        tau: (C, A), float32 or better, a temperature per anchor, which has a gradient; only without φ and with β = 0.
            Its range counts for the statistics alone. None: the temperature is φ's or the constant `tau_min`.
        chosen: T, where it is known already; None: it is looked for.

    Returns:
        (rows, stats): rows (C, A); stats of s and τ over T, 0-dim and detached.

    Raises:
        ValueError, TypeError: a setting that is out of range or of the wrong kind; the message names it.
    """
    operator_settings.contrast(anchors, tau_min, tau_max, negatives, top_k, beta, extra, tau)
    dim = anchors.shape[2]
    similarity = anchors @ candidates.mT  # (C, A, B)
    columns = _hardest(similarity, skip, negatives, top_k) if chosen is None else chosen.columns.long()
    s = similarity.gather(-1, columns)
    if tau is not None:
        tau, beta = tau.unsqueeze(-1).expand(s.shape), 0.0
    elif phi_anchors is None or phi_candidates is None:
        tau, beta = torch.full_like(s, tau_min), 0.0
    else:
        r = (phi_anchors @ phi_candidates.mT).gather(-1, columns)
        tau = _temperature(r, offset, tau_min, tau_max)
    if negatives == "topk_mean":
        result = (s / tau).mean(-1) - beta * (tau.log() + tau.reciprocal()).sum(-1)
    else:
        logits = s / tau
        if beta:
            logits = logits - beta * omega(tau, dim)
        result = logits.logsumexp(-1)
        if extra is not None:
            result = torch.logaddexp(result, extra)
    return result, stats(s, tau, tau_min, tau_max)


def _hardest(similarity: Tensor, skip: Tensor | None, negatives: str, top_k: int | None) -> Tensor:
    """Columns (C, A, κ) of T, by falling similarity (C, A, B); ties: lowest column."""
    available = similarity.shape[-1]
    count = available if negatives == "softmax" or top_k is None else top_k
    ranked = similarity.detach()
    if skip is not None:
        ranked = ranked.scatter(-1, skip.expand(len(ranked), -1, -1), float("-inf"))
        available -= skip.shape[1]
    # A stable sort keeps equal similarities in column order, which torch.topk does not promise.
    return ranked.sort(dim=-1, descending=True, stable=True).indices[..., : min(count, available)]


@torch.no_grad()
def calibrate(
    anchors: Tensor,
    candidates: Tensor,
    skip: Tensor | None,
    *,
    tau_min: float,
    tau_max: float,
    negatives: str,
    top_k: int | None,
    perplexity: float,
) -> tuple[Tensor, Chosen | None]:
    """Temperature of every anchor and head at which the softmax of its negatives has a given perplexity.

    τ solves H(softmax_T(s/τ)) = log max(1, perplexity·|T|), H the entropy, which grows with τ; from tau_min to tau_max,
    at an end of which it stays where none solves it. It is t-SNE's calibration (van der Maaten & Hinton, 2008).

    Args:
        anchors, candidates, skip, negatives, top_k: as in `contrast`; T is the set of negatives that counts there.
        tau_min, tau_max: range of τ.
        perplexity: share of |T|, above 0 and below 1.

    Returns:
        (tau, chosen): tau (C, A), float32 or better, detached; T for `contrast`, None with `softmax`, which takes all.

    Raises:
        ValueError, TypeError: as `contrast`.
    """
    operator_settings.calibrate(anchors, tau_min, tau_max, negatives, top_k, perplexity)
    similarity = anchors @ candidates.mT
    columns = _hardest(similarity, skip, negatives, top_k)
    s = at_least_float32(similarity.gather(-1, columns))
    tau = of_perplexity(s, perplexity, tau_min, tau_max)
    return tau, None if negatives == "softmax" else Chosen(s, columns.int())


def of_perplexity(s: Tensor, perplexity: float, tau_min: float, tau_max: float) -> Tensor:
    """The temperatures (...) of `calibrate`, of the similarities s (..., κ) of the negatives that count."""
    target = math.log(max(1.0, perplexity * s.shape[-1]))
    s = s - s.amax(-1, keepdim=True)  # the entropy is the difference of two numbers of the size of s/τ
    low = torch.full_like(s[..., 0], math.log(tau_min))
    high = torch.full_like(low, math.log(tau_max))
    for _ in range(60 if s.dtype == torch.float64 else 30):  # halves of log τ, to the last digit
        middle = (low + high) / 2
        logits = s / middle.exp().unsqueeze(-1)
        entropy = logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)
        low, high = torch.where(entropy < target, middle, low), torch.where(entropy < target, high, middle)
    return ((low + high) / 2).exp()


def align(
    x: Tensor,
    y: Tensor,
    phi_x: Tensor | None,
    phi_y: Tensor | None,
    offset: Tensor | None,
    *,
    tau_min: float,
    tau_max: float,
    weight: float,
    beta: float,
) -> tuple[Tensor, Stats]:
    """Attraction of paired rows, −weight·s/τ + β·Ω(τ) with s the cosine similarity.

    SimSiam's two terms have weight ½ (Eq. 1.2, 2.2); the positive term of SimCLR and MoCo has weight 1
    (Eq. 1.1, 2.1).

    Args:
        x, y: (C, N, d), of any norm; below 1e-12 they are divided by that (see `rows.unit`).
        phi_x, phi_y: (C, N, m), or both None for a constant temperature.
        offset, tau_min, tau_max, beta: as in `contrast`.
        weight: factor of s/τ.

    Returns:
        (rows, stats): rows (C, N); stats of s and τ over all rows.

    Raises:
        ValueError, TypeError: as `contrast`.
    """
    operator_settings.numbers(x, tau_min, tau_max, weight=weight, beta=beta)
    s = (unit(x) * unit(y)).sum(-1)
    if phi_x is None or phi_y is None:
        tau = torch.full_like(s, tau_min)
        return -weight * s / tau, stats(s, tau, tau_min, tau_max)
    tau = _temperature((phi_x * phi_y).sum(-1), offset, tau_min, tau_max)
    return -weight * s / tau + beta * omega(tau, x.shape[-1]), stats(s, tau, tau_min, tau_max)


def decorrelate(
    x: Tensor,
    y: Tensor,
    phi_x: Tensor | None,
    phi_y: Tensor | None,
    offset: Tensor | None,
    *,
    tau_min: float,
    tau_max: float,
    lambd: float,
    beta: float,
) -> tuple[Tensor, Stats, Stats]:
    """Barlow Twins with a temperature per pair of channels (Eq. 1.3, 2.3).

    With 𝒞 = x·yᵀ / N: Σ_l (1 − 𝒞_ll/τ_ll)² + λ·Σ_{l≠m} 𝒞_lm²/τ_lm + β·Σ_l Ω(τ_ll) − β·Σ_{l≠m} Ω(τ_lm).

    Args:
        x, y: (C, d, N), channel vectors standardised along the batch.
        phi_x, phi_y: (C, d, m), φ of the raw channel vectors, or both None for a constant temperature.
        offset, tau_min, tau_max, beta: as in `contrast`.
        lambd: λ, weight of the off-diagonal.

    Returns:
        (losses, on, off): losses (C,), of each head; stats of 𝒞 and τ on the diagonal and off it.

    Raises:
        ValueError, TypeError: as `contrast`.
    """
    operator_settings.numbers(x, tau_min, tau_max, lambd=lambd, beta=beta)
    _, dim, batch = x.shape
    correlation = x @ y.mT / batch  # (C, d, d)
    diagonal = torch.eye(dim, dtype=torch.bool, device=x.device)
    if phi_x is None or phi_y is None:
        tau = torch.full_like(correlation, tau_min)
    else:
        tau = _temperature(phi_x @ phi_y.mT, offset, tau_min, tau_max)
    terms = torch.where(diagonal, (1 - correlation / tau).square(), lambd * correlation.square() / tau)
    if phi_x is not None and beta:
        penalty = omega(tau, dim)
        terms = terms + beta * torch.where(diagonal, penalty, -penalty)
    c, t = correlation.detach(), tau.detach()
    on = stats(c.diagonal(dim1=-2, dim2=-1), t.diagonal(dim1=-2, dim2=-1), tau_min, tau_max)
    off = stats(_off_diagonal(c), _off_diagonal(t), tau_min, tau_max)
    return terms.sum((-2, -1)), on, off


def stats(similarity: Tensor, tau: Tensor, tau_min: float, tau_max: float) -> Stats:
    """Summary of similarities and temperatures, as 0-dim detached tensors (no host synchronisation).

    Keys: `similarity`, `tau_mean`, `tau_std`, `tau_min`, and `tau_at_bound`, the share of τ within
    `BOUND_SHARE` of either end of its range (0 for a constant temperature). Means of empty sets are NaN.
    """
    similarity, tau = similarity.detach(), tau.detach()
    margin = BOUND_SHARE * (tau_max - tau_min)
    at_bound = (tau < tau_min + margin) | (tau > tau_max - margin)
    return {
        "similarity": similarity.mean(),
        "tau_mean": tau.mean(),
        "tau_std": tau.std(correction=0),
        "tau_min": tau.min() if tau.numel() else tau.mean(),
        "tau_at_bound": at_bound.to(tau.dtype).mean(),
    }


def _off_diagonal(matrices: Tensor) -> Tensor:
    """(C, d, d) without its diagonals, (C, d − 1, d); by views, as a mask would wait for the device."""
    dim = matrices.shape[-1]
    return matrices.flatten(1)[:, :-1].unflatten(1, (dim - 1, dim + 1))[..., 1:]


def _temperature(r: Tensor, offset: Tensor | None, tau_min: float, tau_max: float) -> Tensor:
    """τ = tau_min + (tau_max − tau_min)·σ(−(r − offset))."""
    if offset is not None:
        r = r - offset
    return tau_min + (tau_max - tau_min) * torch.sigmoid(-r)

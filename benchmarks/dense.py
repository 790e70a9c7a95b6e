"""The operators and losses as anyone would write them in PyTorch: all similarities, `torch.topk`, τ of the chosen."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def _temperature(r: Tensor, settings: dict[str, Any]) -> Tensor:
    return settings["tau_min"] + (settings["tau_max"] - settings["tau_min"]) * torch.sigmoid(-r.float())


def contrast(
    anchors: Tensor,
    candidates: Tensor,
    phi_anchors: Tensor | None,
    phi_candidates: Tensor | None,
    offset: Tensor | None,
    skip: Tensor | None,
    **settings: Any,
) -> Tensor:
    """Rows of `reference.contrast` without an offset: half-precision products, float32 after them, torch.topk."""
    s = (anchors @ candidates.mT).float()
    r = phi_anchors @ phi_candidates.mT if phi_anchors is not None and phi_candidates is not None else None
    skipped = None if skip is None else skip.expand(len(s), -1, -1)
    if settings["top_k"] is not None:
        if skipped is not None:
            s = s.scatter(-1, skipped, float("-inf"))
        s, chosen = s.topk(settings["top_k"], dim=-1)
        r = None if r is None else r.gather(-1, chosen)
    if r is None:
        logits = s / settings["tau_min"]
    else:
        tau = _temperature(r, settings)
        logits = s / tau
        if settings["negatives"] == "topk_mean":
            return logits.mean(-1) - settings["beta"] * (tau.log() + tau.reciprocal()).sum(-1)
        logits = logits - settings["beta"] * (0.5 * anchors.shape[-1] * tau.log() + tau.reciprocal())
    if settings["negatives"] == "topk_mean":
        return logits.mean(-1)
    if settings["top_k"] is None and skipped is not None:
        logits = logits.scatter(-1, skipped, float("-inf"))
    return logits.logsumexp(-1)


def contrast_chunked(
    anchors: Tensor,
    candidates: Tensor,
    phi_anchors: Tensor | None,
    phi_candidates: Tensor | None,
    offset: Tensor | None,
    skip: Tensor | None,
    **settings: Any,
) -> Tensor:
    """`contrast` for 1024 anchors at a time, formed again in the backward pass."""

    def rows(part: slice) -> Tensor:
        return contrast(
            anchors[:, part],
            candidates,
            None if phi_anchors is None else phi_anchors[:, part],
            phi_candidates,
            offset,
            None if skip is None else skip[part],
            **settings,
        )

    parts = [slice(start, start + 1024) for start in range(0, anchors.shape[1], 1024)]
    return torch.cat([checkpoint(rows, part, use_reentrant=False) for part in parts], dim=1)


def align(
    x: Tensor, y: Tensor, phi_x: Tensor | None, phi_y: Tensor | None, offset: Tensor | None, **settings: Any
) -> Tensor:
    """Rows of `reference.align` without an offset."""
    s = (F.normalize(x.float(), dim=-1) * F.normalize(y.float(), dim=-1)).sum(-1)
    if phi_x is None or phi_y is None:
        return -settings["weight"] * s / settings["tau_min"]
    tau = _temperature((phi_x.float() * phi_y.float()).sum(-1), settings)
    omega = 0.5 * x.shape[-1] * tau.log() + tau.reciprocal()
    return -settings["weight"] * s / tau + settings["beta"] * omega


def decorrelate(
    x: Tensor, y: Tensor, phi_x: Tensor | None, phi_y: Tensor | None, offset: Tensor | None, **settings: Any
) -> Tensor:
    """Losses of `reference.decorrelate` without an offset."""
    correlation = (x @ y.mT).float() / x.shape[-1]
    diagonal = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
    if phi_x is None or phi_y is None:
        tau = torch.full((), settings["tau_min"], device=x.device)
        terms = torch.zeros((), device=x.device)
    else:
        tau = _temperature(phi_x @ phi_y.mT, settings)
        omega = 0.5 * x.shape[1] * tau.log() + tau.reciprocal()
        terms = settings["beta"] * torch.where(diagonal, omega, -omega)
    terms = terms + torch.where(
        diagonal, (1 - correlation / tau).square(), settings["lambd"] * correlation.square() / tau
    )
    return terms.sum((-2, -1))


def simclr(z1: Tensor, z2: Tensor, *phi: Tensor, **settings: Any) -> Tensor:
    """`SimCLRLoss` with the positive in the log-sum-exp, dense, for (N, C, d) or (N, d)."""
    n = len(z1)
    x, y = (z.reshape(n, -1, z.shape[-1]).transpose(0, 1) for z in (z1, z2))
    z = F.normalize(torch.cat([x, y], dim=1), dim=-1)
    logits = z @ z.mT
    if phi:
        features = F.linear(F.relu(F.linear(z, phi[0], phi[1])), phi[2], phi[3])
        tau = _temperature(features @ features.mT, settings)
        logits = logits / tau - settings["beta"] * (0.5 * z.shape[-1] * tau.log() + tau.reciprocal())
    else:
        logits = logits / settings["tau_min"]
    logits = logits.masked_fill(torch.eye(2 * n, dtype=torch.bool, device=z.device), float("-inf"))
    target = torch.arange(2 * n, device=z.device).roll(n).expand(len(z), -1)
    return F.cross_entropy(logits.flatten(0, 1), target.flatten()) * len(z)


def moco(q: Tensor, k: Tensor, queue: Tensor, *phi: Tensor, **settings: Any) -> Tensor:
    """`MoCoLoss` of a form without the positive in its log-sum-exp, dense, for (N, C, d) or (N, d)."""
    n = len(q)
    x, y = (F.normalize(z.reshape(n, -1, z.shape[-1]).transpose(0, 1), dim=-1) for z in (q, k.detach()))
    anchors = torch.cat([x, y], dim=1)
    keys = queue.reshape(len(x), *queue.shape[-2:]).mT
    features: list[Tensor | None] = [None, None]
    if phi:
        features = [F.linear(F.relu(F.linear(z, phi[0], phi[1])), phi[2], phi[3]) for z in (anchors, keys)]
    of_x, of_y = (None, None) if features[0] is None else features[0].split(n, dim=1)
    positive = align(x, y, of_x, of_y, None, **settings | {"weight": 1.0})
    negative = contrast(anchors, keys, features[0], features[1], None, None, **settings)
    return (torch.cat([positive, positive], dim=1) + negative).mean(1).sum()


def infonce(x: Tensor, y: Tensor, **settings: Any) -> Tensor:
    """Cross-entropy of x's rows over all of y, each row's own the right one: (N, d), normalised already."""
    return F.cross_entropy((x @ y.mT / settings["tau_min"]).float(), torch.arange(len(x), device=x.device))


def barlow(z1: Tensor, z2: Tensor, **settings: Any) -> Tensor:
    """`BarlowTwinsLoss` of a constant temperature, dense, for (N, d)."""
    x, y = (((z - z.mean(0)) / (z.std(0) + 1e-9)).mT.unsqueeze(0) for z in (z1, z2))
    return decorrelate(x, y, None, None, None, **settings).sum()


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "contrast": contrast, "align": align, "decorrelate": decorrelate, "simclr": simclr, "moco": moco,
    "barlow": barlow, "infonce": infonce,
}  # fmt: skip
"""By `Case.operator`."""

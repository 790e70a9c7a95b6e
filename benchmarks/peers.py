"""The same operators as anyone would write them in PyTorch, and the products that nobody can do without."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .cases import Case

Operator = Callable[..., Tensor]


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


def products(case: Case, operands: list[Tensor | None], rows_at_once: int | None = None) -> Callable[[], None]:
    """The matrix products of a dense forward and backward pass, alone: s, r, and two gradients of each.

    `rows_at_once`: for that many anchors at a time, where rows × candidates does not fit in memory.
    """
    tables = [t.detach() for t in operands[:4] if t is not None]
    pairs = [(x, y) for x, y in zip(tables[::2], tables[1::2], strict=True)]

    def run() -> None:
        for x, y in pairs:
            for part in x.split(rows_at_once or x.shape[1], dim=1):
                matrix = part @ y.mT
                _ = matrix @ y
                _ = matrix.mT @ part

    return run


def peer(name: str, case: Case) -> Operator:
    """The operator of `case` as `dense`, `compiled` or `chunked` PyTorch."""
    operators: dict[str, Operator] = {"contrast": contrast, "align": align, "decorrelate": decorrelate}
    dense = operators[case.operator]
    if name == "dense":
        return dense
    if name == "compiled":
        return torch.compile(dense, dynamic=False)
    if name == "chunked" and case.operator == "contrast":
        return contrast_chunked
    raise ValueError(f"no peer {name!r} of {case.operator}")

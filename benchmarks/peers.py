"""The same operators and losses as anyone would write them in PyTorch, other libraries' and the bare products."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from amcl_fast import AdaptiveTemperature, BarlowTwinsLoss, MoCoLoss, SimCLRLoss, ops

from .cases import LOSSES, PHI, Case, Operands

# From operands, as `Case.operands` makes them, to the result.
Run = Callable[..., Tensor]


class NotInstalled(Exception):
    """A peer's package is missing; the message says what installs it."""


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


def _lightly(case: Case) -> Run:
    try:
        from lightly.loss import BarlowTwinsLoss, NTXentLoss
    except ImportError:
        raise NotInstalled("not installed: pip install 'amcl-fast[bench]'") from None
    if case.operator == "simclr":
        return NTXentLoss(case.settings["tau_min"])
    return BarlowTwinsLoss(case.settings["lambd"])


def _inf_cl(case: Case) -> Run:
    """Inf-CL's kernels (arXiv 2410.17243): tiles of logits, exact, in tf32."""
    try:
        from inf_cl import cal_flash_loss
    except ImportError:
        raise NotInstalled("not installed: pip install inf_cl") from None
    return lambda x, y: cal_flash_loss(x, y, scale=1 / case.settings["tau_min"], head_dim=case.width).mean()


def _liger(case: Case) -> Run:
    """Liger's linear layer with cross-entropy: the candidates are the weights of the classes."""
    try:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy
    except ImportError:
        raise NotInstalled("not installed: pip install liger-kernel") from None

    def run(x: Tensor, y: Tensor) -> Tensor:
        target = torch.arange(len(x), device=x.device)
        return liger_fused_linear_cross_entropy(x / case.settings["tau_min"], y, target)

    return run


def products(case: Case, operands: Operands, rows_at_once: int | None = None) -> Callable[[], None]:
    """The matrix products of a dense forward and backward pass, alone: s, r, and the gradients that the case has.

    `rows_at_once`: for that many anchors at a time, where rows × candidates does not fit in memory.
    """
    tables = [(t.detach(), t.requires_grad) for t in operands[:4] if t is not None]
    pairs = list(zip(tables[::2], tables[1::2], strict=True))

    def run() -> None:
        for (x, by_x), (y, by_y) in pairs:
            for part in x.split(rows_at_once or x.shape[1], dim=1):
                matrix = part @ y.mT
                if by_x:
                    _ = matrix @ y
                if by_y:
                    _ = matrix.mT @ part

    return run


def peer(name: str, case: Case) -> Run:
    """The operator or loss of `case` as the peer `name` has it.

    Raises:
        NotInstalled: an optional package is missing.
        ValueError: there is no such peer of this operator.
    """
    operators: dict[str, Run] = {
        "contrast": contrast, "align": align, "decorrelate": decorrelate, "simclr": simclr, "moco": moco,
        "barlow": barlow, "infonce": infonce,
    }  # fmt: skip
    dense = operators[case.operator]
    if name == "dense":
        return partial(dense, **case.settings)
    if name == "compiled":
        torch.compiler.reset()
        return partial(torch.compile(dense, dynamic=False), **case.settings)
    if name == "chunked" and case.operator == "contrast":
        return partial(contrast_chunked, **case.settings)
    if name == "lightly" and case.operator in ("simclr", "barlow") and not case.adaptive:
        return _lightly(case)
    if name in ("inf_cl", "liger") and case.operator == "infonce":
        return _inf_cl(case) if name == "inf_cl" else _liger(case)
    raise ValueError(f"no peer {name!r} of {case.operator}")


def implementation(name: str, case: Case) -> Run:
    """The operator or loss of `case`, from its operands to a tensor, by a backend of amcl_fast or by a peer.

    Raises:
        NotInstalled, ValueError: as `peer`.
    """
    if name not in ops.BACKENDS:
        return peer(name, case)
    if case.operator in LOSSES:
        return _loss(name, case)
    operator = getattr(ops, case.operator)
    return lambda *operands: operator(*operands, backend=name, **case.settings)[0]


def module_of(backend: str, case: Case) -> nn.Module:
    """The loss of a case of `LOSSES` as its users have it, with φ of its own."""
    settings = {key: value for key, value in case.settings.items() if not key.startswith("tau")} | {"backend": backend}
    ranges = {"tau_min": case.settings["tau_min"], "tau_max": case.settings["tau_max"]}
    if "precision" in settings:
        ranges["precision"] = settings.pop("precision")
    temperature = AdaptiveTemperature(case.width, **ranges) if case.adaptive else ranges["tau_min"]
    if case.operator == "simclr":
        return SimCLRLoss(temperature, include_positive=True, **settings)
    return {"moco": MoCoLoss, "barlow": BarlowTwinsLoss}[case.operator](temperature, **settings)


def _loss(backend: str, case: Case) -> Run:
    if case.operator == "infonce":
        tau = case.settings["tau_min"]

        def one_way(x: Tensor, y: Tensor) -> Tensor:
            settings = {"tau_min": tau, "tau_max": tau, "negatives": "softmax", "top_k": None, "beta": 0.0}
            rows, _ = ops.contrast(x[None], y[None], None, None, None, None, backend=backend, **settings)
            # float64 in float64, and float32 for halves.
            own = (x * y if x.dtype == torch.float64 else x.float() * y.float()).sum(-1)
            return (rows[0] - own / tau).mean()

        return one_way
    module = module_of(backend, case)
    names = [f"temperature.phi.{name}" for name in PHI]
    inputs = 3 if case.operator == "moco" else 2

    def run(*operands: Tensor) -> Tensor:
        # φ's weights are operands, so that every implementation is asked for the same gradients.
        phi = dict(zip(names, operands[inputs:], strict=False))
        return torch.func.functional_call(module, phi, operands[:inputs])

    return run

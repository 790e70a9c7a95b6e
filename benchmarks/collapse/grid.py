"""The places of the study: settings of a loss, heads, batches, optimisers, seeds, and the order of the runs."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from amcl_fast import AdaptiveTemperature, MoCoLoss, SimCLRLoss
from amcl_fast.operator_settings import Negatives
from amcl_fast.ops.backends import BackendName

DIM = 128
QUEUE = 4096
HEADS = ("plain", "hidden", "both")
"""BatchNorm in the head: none, after the hidden layer, after both layers."""
OPTIMIZERS = ("sgd-clip", "sgd", "adamw", "adamw-2e-3")


@dataclass(frozen=True)
class Loss:
    """One setting of a loss.

    Attributes:
        framework: simclr or moco.
        heads: C.
        tau: a constant; (τ_min, τ_max) with the cosine score; None: the released temperature.
        negatives, positive: as the loss's `negatives` and `include_positive`.
        kappa: κ if an int, a share of the negatives if a float.
        minor: of less interest than the others.
        offset: where the cosine score's offset begins.
    """

    tau: float | tuple[float, float] | None
    negatives: Negatives = "softmax"
    kappa: int | float | None = None
    positive: bool = False
    heads: int = 1
    framework: str = "simclr"
    minor: bool = False
    offset: float = 0.0

    def selected(self, batch: int) -> tuple[int, int]:
        """(κ, negatives of an anchor) with `batch` images."""
        available = QUEUE if self.framework == "moco" else 2 * batch - 2
        if self.kappa is None:
            return available, available
        wanted = self.kappa if isinstance(self.kappa, int) else max(1, round(self.kappa * available))
        return min(wanted, available), available

    def build(self, batch: int, backend: BackendName) -> SimCLRLoss | MoCoLoss:
        """The criterion."""
        temperature: float | AdaptiveTemperature
        if isinstance(self.tau, tuple):
            tau_min, tau_max = self.tau
            temperature = AdaptiveTemperature(DIM, tau_min=tau_min, tau_max=tau_max, score="cosine", offset=self.offset)
        else:
            temperature = AdaptiveTemperature(DIM) if self.tau is None else self.tau
        cls = SimCLRLoss if self.framework == "simclr" else MoCoLoss
        return cls(
            temperature,
            negatives=self.negatives,
            top_k=self.selected(batch)[0],
            include_positive=self.positive,
            backend=backend,
        )


def _losses() -> dict[str, Loss]:
    adaptive = (0.1, 1.0)
    losses = {
        "ntxent-0.5": Loss(0.5, positive=True),
        "ntxent-0.1": Loss(0.1, positive=True),
        "ntxent-0.1-3heads": Loss(0.1, positive=True, heads=3),
        "dcl-0.1": Loss(0.1),
        "softmax-adaptive": Loss(adaptive, heads=3),
        "softmax-adaptive+": Loss(adaptive, positive=True, heads=3),
        "recommended": Loss(adaptive, positive=True, heads=3, offset=0.5),
        "softmax-adaptive-high+": Loss((0.2, 1.0), positive=True, heads=3),
        "topk-100-adaptive": Loss(adaptive, "topk_softmax", 100, heads=3),
        "topk-100-adaptive+": Loss(adaptive, "topk_softmax", 100, True, heads=3),
        "topk-100-0.1": Loss(0.1, "topk_softmax", 100, heads=3),
        "topk-100-0.1+": Loss(0.1, "topk_softmax", 100, True, heads=3),
        "topk-25%-adaptive+": Loss(adaptive, "topk_softmax", 0.25, True, heads=3),
        "topk-50%-adaptive+": Loss(adaptive, "topk_softmax", 0.5, True, heads=3),
        "topk-50%-adaptive": Loss(adaptive, "topk_softmax", 0.5, heads=3),
        "mean-100-released": Loss(None, "topk_mean", 100, heads=3),
        "moco-infonce-0.1": Loss(0.1, positive=True, framework="moco"),
        "moco-softmax-adaptive+": Loss(adaptive, positive=True, heads=3, framework="moco"),
        "moco-softmax-adaptive-high+": Loss((0.2, 1.0), positive=True, heads=3, framework="moco"),
        "moco-mean-100-released": Loss(None, "topk_mean", 100, heads=3, framework="moco"),
    }
    minor = {
        "ntxent-0.2": Loss(0.2, positive=True),
        "ntxent-0.2-3heads": Loss(0.2, positive=True, heads=3),
        "ntxent-0.5-3heads": Loss(0.5, positive=True, heads=3),
        "dcl-0.2": Loss(0.2),
        "softmax-adaptive-1head": Loss(adaptive),
        "softmax-adaptive+1head": Loss(adaptive, positive=True),
        "softmax-adaptive-low+": Loss((0.05, 0.5), positive=True, heads=3),
        "topk-100-0.2": Loss(0.2, "topk_softmax", 100, heads=3),
        "topk-100-adaptive-1head": Loss(adaptive, "topk_softmax", 100),
        "mean-100-adaptive": Loss(adaptive, "topk_mean", 100, heads=3),
        "mean-50%-0.1": Loss(0.1, "topk_mean", 0.5, heads=3),
        "moco-topk-100-adaptive": Loss(adaptive, "topk_softmax", 100, heads=3, framework="moco"),
        "moco-topk-100-adaptive+": Loss(adaptive, "topk_softmax", 100, True, heads=3, framework="moco"),
        "moco-softmax-adaptive": Loss(adaptive, heads=3, framework="moco"),
        "moco-infonce-0.2": Loss(0.2, positive=True, framework="moco"),
    }
    for share in (0.05, 0.1, 0.25):
        for sign, positive in (("", False), ("+", True)):
            name = f"topk-{share:.0%}-adaptive{sign}"
            if name not in losses:
                minor[name] = Loss(adaptive, "topk_softmax", share, positive, heads=3)
            minor[f"topk-{share:.0%}-0.1{sign}"] = Loss(0.1, "topk_softmax", share, positive, heads=3)
    minor["topk-50%-0.1"] = Loss(0.1, "topk_softmax", 0.5, heads=3)
    return losses | {name: replace(loss, minor=True) for name, loss in minor.items()}


LOSSES = _losses()
"""By name; + is the positive in the log-sum-exp, adaptive is τ with the cosine score from 0.1 to 1 (low: 0.05 to 0.5,
high: 0.2 to 1). `recommended` is `SimCLRLoss.recommended`, whose τ begin away from both ends of the range; MoCo's is
moco-softmax-adaptive+."""


@dataclass(frozen=True)
class Run:
    """A place in the grid."""

    loss: str
    head: str
    batch: int
    optimizer: str
    seed: int


def grid(
    losses: Sequence[str],
    heads: Sequence[str],
    batches: Sequence[int],
    optimizers: Sequence[str],
    seeds: Sequence[int],
    deviations: int,
) -> list[Run]:
    """The runs in their order: by seed, then by how many axes are not at their first value."""

    def distance(run: Run) -> int:
        places = ((run.head, heads), (run.batch, batches), (run.optimizer, optimizers))
        return sum(value != values[0] for value, values in places) + LOSSES[run.loss].minor  # type: ignore[index]

    runs = [Run(*axes) for axes in itertools.product(losses, heads, batches, optimizers, seeds)]
    near = (run for run in runs if distance(run) <= deviations)
    return sorted(near, key=lambda run: (seeds.index(run.seed), distance(run), not LOSSES[run.loss].minor))

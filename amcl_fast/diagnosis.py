"""What a loss's statistics say is wrong with a training, and what to do about it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .losses import BarlowTwinsLoss, MoCoLoss, SimCLRLoss, SimSiamLoss
from .temperature import AdaptiveTemperature, PerplexityTemperature

__all__ = ["Finding", "diagnose"]

AT_BOUND = 0.99
"""Share of temperatures at a bound of their range (within a hundredth of it) from which on they count as lost."""

NEAR_ONE = 0.95
"""Mean similarity above which projections are looked at, 18 degrees. Plain heads start at 0.87 to 0.9 on CIFAR-10 and
reach 0.4 or less within 150 steps of what trains; collapsed ones stay above 0.98 (docs/training.md)."""

NO_NEARER = 0.8
"""Positives count as told from negatives while their mean squared distance is at most this share of the negatives'. In
the runs of docs/training.md that had similarities above `NEAR_ONE` at their 40th step or later, it was 0.94 and more
where projections were collapsed, and below 0.53 in MoCo's narrow but living cones."""

_ROUNDING = 1e-6


@dataclass(frozen=True)
class Finding:
    """One fault.

    Attributes:
        kind: `projections`: all are equal, or about to be; `temperatures`: all lie at a bound and adapt no more.
        what: what was measured, a clause.
        remedy: what to change, a sentence.
    """

    kind: Literal["projections", "temperatures"]
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"the {self.kind} have collapsed: {self.what}. {self.remedy}"


def diagnose(criterion: SimCLRLoss | MoCoLoss | SimSiamLoss | BarlowTwinsLoss) -> list[Finding]:
    """Faults that show in the latest `criterion.last_stats`; empty if there are none, or no call was made yet.

    - Projections (SimCLR, MoCo): positives and negatives are similar by more than `NEAR_ONE` = 0.95, and the mean
      squared distance of positives, 2 − 2s, is more than `NO_NEARER` = 0.8 of the (selected) negatives'. Then rows
      differ by what the augmentations did rather than by the image, and a loss whose κ hardest negatives are nearer
      than the positives pulls them together until nothing is left. A training may pass through that: believe what
      holds for 100 steps.
    - Temperatures: more than `AT_BOUND` = 99 % of those of the positives or of the negatives lie within a hundredth of
      the range from an end of it, where φ's gradient is a hundredth of what it was. Of a `PerplexityTemperature` it is
      those before their mean is pinned, by their logarithms: at an end an anchor has not the perplexity asked for.

    SimSiam has no negatives to compare with, and in Barlow Twins a similarity is a correlation of channels: with these
    only the temperatures are judged.

    The numbers are read in one copy from their device, which waits for it: call it now and then, not at every step.
    """
    stats = _read(criterion.last_stats)
    return [*_projections(criterion, stats), *_temperatures(criterion, stats)]


def _read(stats: Mapping[str, Tensor]) -> dict[str, float]:
    if not stats:
        return {}
    return dict(zip(stats, torch.stack([value.float() for value in stats.values()]).tolist(), strict=True))


def _projections(criterion: torch.nn.Module, stats: Mapping[str, float]) -> list[Finding]:
    if not isinstance(criterion, SimCLRLoss | MoCoLoss) or not stats:
        return []
    positive, negative = stats["similarity_positive"], stats["similarity_negative"]
    # Rows that float32 cannot tell apart are equal, whichever way their similarities were rounded.
    no_nearer = 1 - positive >= NO_NEARER * (1 - negative) - _ROUNDING
    if not (min(positive, negative) > NEAR_ONE and no_nearer):
        return []
    if criterion.negatives == "softmax" and criterion.include_positive:
        remedy = "Lower the learning rate, or give the head a BatchNorm after its last layer."
    else:
        kappa = "" if criterion.top_k is None else f", top_k={criterion.top_k}"
        remedy = (
            f"The criterion has negatives={criterion.negatives!r}{kappa}: set negatives='softmax' and "
            f"include_positive=True ({type(criterion).__name__}.recommended), or give the head a BatchNorm after its "
            "last layer (model.projector.batch_norm)."
        )
    what = (
        f"similarities of positives and negatives are {positive:.4f} and {negative:.4f}, so that the head tells images "
        "hardly apart"
    )
    return [Finding("projections", what, remedy)]


def _temperatures(criterion: torch.nn.Module, stats: Mapping[str, float]) -> list[Finding]:
    temperature = criterion.temperature
    # One number adapts to no pair, and CLIP's is meant to end at τ_min.
    if not isinstance(temperature, AdaptiveTemperature | PerplexityTemperature):
        return []
    lost = [group for group in ("positive", "negative") if stats.get(f"tau_{group}_at_bound", 0.0) > AT_BOUND]
    if not lost:
        return []
    means = " and ".join(f"{stats[f'tau_{group}_mean']:.2g} ({group}s)" for group in lost)
    what = f"more than {AT_BOUND:.0%} of them lie at a bound, with mean {means}, so they no longer adapt"
    if isinstance(temperature, PerplexityTemperature):
        what = (
            f"more than {AT_BOUND:.0%} of anchors would need a τ beyond the ends of its range, from "
            f"{temperature.tau_min:g} to {temperature.tau_max:g}, for a perplexity of {temperature.perplexity:g} of "
            "their negatives, so they do not adapt"
        )
        remedy = (
            "Widen the temperature's range, tau_min to tau_max, or take another perplexity, whose product with the "
            "number of negatives that count must be above 1."
        )
    elif temperature.objective == "dro":
        remedy = (
            "Widen the temperature's range, tau_min to tau_max, or take another rho: it asks for a perplexity of "
            f"{math.exp(-temperature.rho):.2g} of the negatives that count."  # type: ignore[operator]
        )
    elif temperature.share == "row":
        remedy = (
            "Set the temperature's objective='dro' with a rho (1, say), whose best τ lies inside, or take a "
            "PerplexityTemperature or a constant."
        )
    else:
        remedy = (
            "Set the criterion's temperature to score='cosine' with a larger tau_min "
            f"(as {type(criterion).__name__}.recommended has it), or to a constant."
        )
    return [Finding("temperatures", what, remedy)]

"""`last_stats` of the losses, from what their operators tell."""

import torch

from ..reference import Stats
from ..rows import transformed


def named(positives: Stats, negatives: Stats | None = None) -> Stats:
    """`last_stats`: tau_positive_mean, …, similarity_positive, and the same of the negatives.

    Empty in a transform of torch.func, whose tensors mean nothing outside of it.
    """
    result: Stats = {}
    if transformed():
        return result
    for group, stats in (("positive", positives), ("negative", negatives or {})):
        for key, value in stats.items():
            kind, _, measure = key.partition("_")
            result[f"{kind}_{group}_{measure}" if measure else f"{kind}_{group}"] = value
    return result


def merged(a: Stats, b: Stats) -> Stats:
    """Statistics of two sets of equal size taken together."""
    both = torch.stack([*a.values(), *b.values()]).unflatten(0, (2, -1))
    merged = dict(zip(a, both.mean(0).unbind(), strict=True))
    of = {key: both[:, i] for i, key in enumerate(a)}
    # Within the sets, and between their means.
    merged["tau_std"] = (of["tau_std"].square().mean() + of["tau_mean"].var(correction=0)).sqrt()
    merged["tau_min"] = of["tau_min"].amin()
    return merged

"""`last_stats` of the losses, from what their operators tell."""

import math
from collections.abc import Sequence

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


def merged(sets: Sequence[Stats], sizes: Sequence[int]) -> Stats:
    """Statistics of several sets taken together.

    Args:
        sets: of each, not empty.
        sizes: how large they are, in any unit; a set of size 0 is left out.
    """
    unit = math.gcd(*sizes)
    # Each as often as its size says, which makes them sets of one size.
    repeated = [of for of, size in zip(sets, sizes, strict=True) for _ in range(size // unit)]
    if len(repeated) == 1:
        return repeated[0]
    keys = list(repeated[0])
    all_of = torch.stack([of[key] for of in repeated for key in keys]).unflatten(0, (len(repeated), -1))
    result = dict(zip(keys, all_of.mean(0).unbind(), strict=True))
    of_key = {key: all_of[:, i] for i, key in enumerate(keys)}
    # Within the sets, and between their means.
    result["tau_std"] = (of_key["tau_std"].square().mean() + of_key["tau_mean"].var(correction=0)).sqrt()
    result["tau_min"] = of_key["tau_min"].amin()
    return result

"""`amcl-fast study top-k`: how many of the negatives, the hardest ones, the loss takes (Figure 5)."""

from collections.abc import Sequence

from ..losses import SimCLRLoss
from .comparison import CRITERION, Cell, Comparison, Given, contrast_of
from .course import check_different

NAME = "top-k"


def top_k(given: Given, *, shares: Sequence[float]) -> Comparison:
    """The study: `topk_softmax` over the κ hardest negatives, all else as in the recipe.

    Args:
        given: what every comparison takes.
        shares: κ as shares of an anchor's negatives, 1: all. All, or else the first, is what others are compared with.

    Raises:
        SettingsError, ValueError: the recipe has no negatives, or a share is out of range.
    """
    check_different("shares", shares)
    for share in shares:
        if not 0 < share <= 1:
            raise ValueError(f"--shares must be above 0 and at most 1, got {share:g}")
    found = given.found()
    kind, _ = contrast_of(found, NAME)
    arguments, batch = found["model"]["init_args"], found["data"]["batch_size"]
    if kind is SimCLRLoss:
        available, what = 2 * batch - 2, f"both views of the other images of a batch of {batch}"
    else:
        available, what = arguments["queue_size"], "the queue"
    counts = {share: max(1, round(share * available)) for share in sorted(shares, key=lambda share: share != 1)}
    if len(set(counts.values())) < len(counts):
        raise ValueError(
            f"--shares must be of different numbers of {available:,} negatives, got {' '.join(map(str, shares))}, of "
            "which two come to the same number"
        )
    cells = []
    for share, count in counts.items():
        cells.append(
            Cell(
                "all" if share == 1 else f"top-{share:g}",
                (
                    *(f"{CRITERION}.init_args.negatives", "topk_softmax"),
                    *(f"{CRITERION}.init_args.top_k", str(count)),
                ),
                f"the {count:,} hardest of {available:,} negatives, {what}" if share < 1 else f"all {count:,}, {what}",
            )
        )
    return Comparison(
        NAME,
        given,
        tuple(cells),
        "Hardest negatives",
        {"shares": tuple(shares)},
        ("model.criterion.negatives", "model.criterion.top_k", "model.criterion.class_path"),
        {"negatives": available},
    )

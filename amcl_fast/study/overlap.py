"""How far apart positives and negatives are: histograms of similarity, their overlap, temperatures over similarity.

All of it is made of the snapshots that a run keeps of its pairs, as its loss sees them, before and after training.

The overlapping coefficient of two densities is ∫ min(p, q), 0 apart and 1 for equal ones (Inman & Bradley, 1989). Its
estimate here is Σ min(p_b, q_b) over the shares in `BINS` equal bins of [−1, 1]. Densities that differ within a bin
alone count as equal; of equal ones in k bins, n positives and far more negatives leave at least 1 − 0.4·√(k/n) on
average. The area under the ROC curve beside it needs no bins: the probability that a positive is more similar than a
negative, ties by half.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runs.read import Run
from ..runs.snapshot import Snapshot
from .results import Row, by_seed, differences, spread

BINS = 40
BIN_WIDTH = 2 / BINS
EDGES = np.linspace(-1, 1, BINS + 1)
KINDS = ("positive", "all", "hardest")
"""Of pairs: positives, all negatives, and the negatives that a loss selects, if it does."""

MOMENTS = ("before", "after")

PAIRS = ("--report.pairs", "2048")
"""More than a run looks at by itself: an overlap of 512 pairs is uncertain by some hundredths."""

_FEWEST = 20
"""Pairs in a bin of which temperatures are told: a tenth of them is two."""


def counts(similarity: ArrayLike) -> list[int]:
    """How many similarities lie in each bin; what rounding has put beyond ±1 is in the last one.

    Raises:
        ValueError: one is not finite.
    """
    values = np.asarray(similarity, np.float64).ravel()
    if not np.isfinite(values).all():
        raise ValueError("similarities must be finite, got NaN or infinity among them")
    found: list[int] = np.histogram(values.clip(-1, 1), EDGES)[0].tolist()
    return found


def overlap(first: ArrayLike, second: ArrayLike) -> float:
    """Overlapping coefficient of two histograms with the same bins: 0 apart, 1 equal up to their totals."""
    p, q = (np.asarray(of, np.float64) / np.sum(of) for of in (first, second))
    return float(np.minimum(p, q).sum())


def auc(positives: ArrayLike, negatives: ArrayLike) -> float:
    """Probability that one of `positives` is above one of `negatives`, equal ones by half: exact, for these values."""
    above, below = np.ravel(positives), np.sort(np.ravel(negatives))
    less, not_more = (below.searchsorted(above, side) for side in ("left", "right"))  # type: ignore[call-overload]
    return float((less + not_more).mean() / (2 * len(below)))


def look(shot: Snapshot, *, adaptive: bool = False) -> Row:
    """What a snapshot says of its pairs.

    Args:
        shot: of C heads.
        adaptive: whether temperatures differ between pairs.

    Returns:
        `step`; `pairs`, positives of each head; `counts`, kind to a histogram of every head; `mean_counts`, the same of
        the heads' mean similarity, of which selected negatives have none: each head selects its own. `overlap` and
        `auc` of positives with all negatives, and with the hardest: of the `heads`, and of their `mean` similarity.
        `tau`: kind to temperatures in the bins of similarity, all heads together, if they are `adaptive`.

    Raises:
        ValueError: a similarity is not finite.
    """
    similarity = {"positive": shot.positive_similarity, "all": shot.random_similarity}
    means = {kind: of.mean(0, dtype=np.float64) for kind, of in similarity.items()}
    tau = {"positive": shot.positive_tau, "all": shot.random_tau}
    if shot.top_k:
        similarity["hardest"], tau["hardest"] = shot.hardest_similarity, shot.hardest_tau
    found = {kind: [counts(head) for head in of] for kind, of in similarity.items()}
    mean_found = {kind: counts(of) for kind, of in means.items()}
    negatives = [kind for kind in found if kind != "positive"]
    overlaps: Row = {kind: {"heads": _by_head(overlap, found["positive"], found[kind])} for kind in negatives}
    aucs: Row = {kind: {"heads": _by_head(auc, similarity["positive"], similarity[kind])} for kind in negatives}
    overlaps["all"]["mean"] = round(overlap(mean_found["positive"], mean_found["all"]), 4)
    aucs["all"]["mean"] = round(auc(means["positive"], means["all"]), 4)
    return {
        "step": shot.step,
        "pairs": shot.positive_similarity.shape[1],
        "counts": found,
        "mean_counts": mean_found,
        "overlap": overlaps,
        "auc": aucs,
        "tau": {kind: _of_bins(similarity[kind], tau[kind]) for kind in found} if adaptive else None,
    }


def looks(run: Run) -> Row:
    """`look` at both `MOMENTS` of a run that has finished, and the `tau_kind` of its temperature.

    Raises:
        ValueError: it has no snapshots, or one holds what is not finite.
    """
    found: Row = {"tau_kind": run.tau_kind}
    for moment in MOMENTS:
        shot: Snapshot | None = getattr(run, moment)
        if shot is None:
            raise ValueError(f"{run.folder} must have a snapshot from {moment} training, got none")
        try:
            found[moment] = look(shot, adaptive=run.tau_kind == "adaptive")
        except ValueError as error:
            raise ValueError(f"{run.folder}: {error}") from None
    return found


def pooled(rows: Iterable[Row], kind: str, moment: str, *, mean: bool = False) -> NDArray[np.float64]:
    """Share (BINS,) of pairs in each bin, all trainings and heads together; `mean`: of the heads' mean similarity."""
    of = "mean_counts" if mean else "counts"
    total = np.sum([np.reshape(row[moment][of][kind], (-1, BINS)).sum(0) for row in rows], axis=0)
    return np.asarray(total / total.sum(), np.float64)


def temperatures(rows: Sequence[Row], kind: str, moment: str) -> dict[str, NDArray[np.float64]]:
    """`mean`, `low`, `high` (BINS,) of temperatures by similarity: means over trainings, NaN where none has any."""
    found = {}
    for name in ("mean", "low", "high"):
        values = np.array([row[moment]["tau"][kind][name] for row in rows], np.float64)  # None as NaN
        there = np.isfinite(values)
        sums = np.where(there, values, 0).sum(0)
        found[name] = np.divide(sums, there.sum(0), out=np.full(BINS, np.nan), where=there.any(0))
    return found


def _own(of: Row) -> float:
    return statistics.fmean(of["all"]["heads"])


VALUES: dict[str, Callable[[Row], float]] = {
    "overlap": lambda row: row["after"]["overlap"]["all"]["mean"],
    "head_overlap": lambda row: _own(row["after"]["overlap"]),
    "auc": lambda row: row["after"]["auc"]["all"]["mean"],
    "head_auc": lambda row: _own(row["after"]["auc"]),
    "untrained_overlap": lambda row: row["before"]["overlap"]["all"]["mean"],
    "untrained_head_overlap": lambda row: _own(row["before"]["overlap"]),
}
"""Numbers of a training's `looks`: of the heads' mean similarity; `head_…`: of each head by itself, on average."""


def summary(rows: Sequence[Row], cells: Sequence[Row], reference: Callable[[Row], Row]) -> Row:
    """What the `looks` of a study's trainings say.

    Args:
        rows: of trainings, with what names their cells.
        cells: all of the study's, in order.
        reference: the cell that one is compared with; itself: it is with none.

    Returns:
        `overlaps`: of each cell `seeds`, and a `spread` for each of `VALUES`; `differences` of overlap
        between each cell and its reference, the cell and `minus` beside.
    """
    found, above = [], []
    for cell in cells:
        if not (of_cell := list(by_seed(rows, **cell).values())):
            continue
        spreads = {name: spread([value(row) for row in of_cell]) for name, value in VALUES.items()}
        found.append({**cell, "seeds": [row["seed"] for row in of_cell], **spreads})
        first = reference(cell)
        if first != cell and (difference := differences(rows, first, cell, VALUES["overlap"])):
            above.append({**cell, "minus": first, **difference})
    return {"overlaps": found, "differences": above}


def _by_head(measure: Callable[[Any, Any], float], positives: Iterable[Any], negatives: Iterable[Any]) -> list[float]:
    return [round(measure(*of_head), 4) for of_head in zip(positives, negatives, strict=True)]


def _of_bins(similarity: NDArray[np.float32], tau: NDArray[np.float32]) -> Row:
    """`mean`, `low`, `high` (the tenth and ninetieth percentile) of temperatures in each bin; None of too few."""
    place = np.digitize(similarity.ravel().clip(-1, 1), EDGES[1:-1])
    of_bins = [tau.ravel()[place == number] for number in range(BINS)]

    def told(measure: Callable[[NDArray[np.float32]], Any]) -> list[float | None]:
        return [float(f"{measure(values):.5g}") if len(values) >= _FEWEST else None for values in of_bins]

    return {
        "mean": told(lambda values: values.mean(dtype=np.float64)),
        "low": told(lambda values: np.percentile(values, 10)),
        "high": told(lambda values: np.percentile(values, 90)),
    }

"""What trainings of a study have measured, and what that says: means over seeds, differences of the same seed."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runs.directory import RunDirectory
from ..runs.read import Run
from ..runs.reading import damaged, misfit

MEASURES = ("knn", "ridge", "knn_recalibrated", "ridge_recalibrated")
"""In percent on held-out images: by kNN and by ridge regression, with BatchNorm as it ran, and recalibrated."""

OF_MEASURES = (
    "kNN accuracy, and that of a ridge regression on one-hot targets (features standardised, penalty chosen on a "
    "held-out tenth of the training images), each with BatchNorm as it ran, and with its running statistics computed "
    "anew on the training images by the final weights (recalibrated)"
)
"""What they are, for a page."""

Row = dict[str, Any]

_MOST_EPOCHS = 10**6

DEFAULT = "default"
"""In place of a backbone: the recipe's own."""


def accuracies(run: Run) -> Row:
    """kNN accuracies of a finished run, in percent: after which epochs, and of its baselines.

    Returns:
        `epochs` and `knn`, as long; `untrained` and `pixels`, None where they were not measured.

    Raises:
        ValueError: they are not those of its settings.
    """
    names = ("trainer.max_epochs", "knn.every_n_epochs")
    last, every = (run.setting(name) for name in names)
    for name, value in zip(names, (last, every), strict=True):
        wrong = f"{name} must be from 1 to {_MOST_EPOCHS:,}, got {value}"
        if problem := misfit(value, int, name) or (not 1 <= value <= _MOST_EPOCHS and wrong):
            raise damaged(RunDirectory(run.folder).config, problem)
    epochs = [*range(every, last, every), last]
    found = run.series("knn")[1].tolist()
    if len(found) != len(epochs):
        why = run.facts.get("unmeasurable")
        raise ValueError(
            f"{run.folder} must have {len(epochs)} kNN accuracies, of every epoch that its settings ask for, got "
            f"{len(found)}" + (f": {why}" if why else "")
        )
    baselines = {name: run.last(f"knn_{name}") for name in ("untrained", "pixels")}
    return {
        "epochs": epochs,
        "knn": [round(value, 4) for value in found],
        **{name: None if value is None else round(value, 4) for name, value in baselines.items()},
    }


def spread(values: Sequence[float]) -> Row:
    """`mean` and its `standard_error`, s/√n with s² = Σ(x − mean)²/(n − 1), which a single value has none of."""
    error = round(statistics.stdev(values) / math.sqrt(len(values)), 4) if len(values) > 1 else None
    return {"mean": round(statistics.fmean(values), 4), "standard_error": error}


def by_seed(rows: Iterable[Row], **cell: Any) -> dict[int, Row]:
    """Of the rows those of a cell of the study, by their seeds."""
    return {row["seed"]: row for row in rows if all(row[name] == value for name, value in cell.items())}


def last_knn(row: Row) -> float:
    """kNN accuracy of a training at its last epoch."""
    return float(row["knn"][-1])


def differences(
    rows: Iterable[Row], reference: Row, other: Row, value: Callable[[Row], float | None] = last_knn
) -> Row | None:
    """What one cell's last accuracies are above another's, seed by seed; None without a seed that both have.

    Args:
        rows: of trainings, with `seed`, and what names their cells.
        reference, other: cells, as `by_seed` takes them.
        value: what is compared, of a row; None: it has none.

    Returns:
        `seeds`, `points` (of percent, as many), and their `spread`.
    """
    found = {
        name: {seed: of for seed, row in by_seed(rows, **cell).items() if (of := value(row)) is not None}
        for rows in [list(rows)]
        for name, cell in (("base", reference), ("above", other))
    }
    seeds = [seed for seed in found["base"] if seed in found["above"]]
    if not seeds:
        return None
    points = [found["above"][seed] - found["base"][seed] for seed in seeds]
    return {"seeds": seeds, "points": [round(of, 4) for of in points], **spread(points)}


def measured(name: str) -> Callable[[Row], float | None]:
    """What takes one of `measured.MEASURES` from a row of a training; None where it was not measured."""
    return lambda row: (row.get("measures") or {}).get(name)


def of_measures(rows: Sequence[Row], cells: Sequence[Row], pairs: Iterable[tuple[Row, Row]]) -> Row:
    """`means` of each cell, and `differences` of pairs of them, of each of the four measures, over seeds.

    Args:
        rows: of trainings, with `measures`.
        cells: as `by_seed` takes them.
        pairs: of a cell and the one that it is compared with.

    Returns:
        Rows with the cell's names, `measure`, `seeds`, `values` or `points`, `mean` and `standard_error`; of a
        difference `minus` is the name of the other cell, where one name alone tells them apart.
    """
    means, above = [], []
    for cell in cells:
        for name in MEASURES:
            found = {seed: of for seed, row in by_seed(rows, **cell).items() if (of := measured(name)(row)) is not None}
            if found:
                values = list(found.values())
                means.append({**cell, "measure": name, "seeds": list(found), "values": values, **spread(values)})
    for cell, minus in pairs:
        for name in MEASURES:
            if difference := differences(rows, minus, cell, measured(name)):
                (other,) = (of for key, of in minus.items() if of != cell[key])
                above.append({**cell, "minus": other, "measure": name, **difference})
    return {"means": means, "differences": above}


def at_the_end(run: Run) -> Row:
    """Of a finished run what else there is to compare.

    Returns:
        `metrics`: the last of each; `tau`: of positives and of the negatives that the loss selects, for each head mean,
        standard deviation, extremes and quantiles; `agreement`: the mean correlation of two heads' similarities of the
        same pairs, and `agreements`, the whole (C, C); None of one head. Both are of the report's sample of pairs as
        it was after training, {} or None without one.
    """
    found: Row = {"metrics": {name: run.last(name) for name in run.metrics}, "tau": {}, "agreement": None}
    found["agreements"] = None
    if (after := run.after) is None:
        return found
    found["tau"] = {
        kind: [_spread_of(head) for head in values]
        for kind, values in (("positive", after.positive_tau), ("negative", after.hardest_tau))
    }
    found["similarity"] = {
        kind: [_spread_of(head) for head in values]
        for kind, values in (
            ("positive", after.positive_similarity),
            ("negative", after.hardest_similarity),
            ("random", after.random_similarity),
        )
    }
    heads, agreement = len(after.random_similarity), after.agreement
    if heads > 1 and np.isfinite(agreement).all():
        found["agreement"] = round(float(agreement[~np.eye(heads, dtype=bool)].mean()), 4)
        found["agreements"] = np.round(agreement, 4).tolist()
    return found


def _spread_of(values: NDArray[np.float32]) -> Row:
    names = ("min", "q05", "q25", "median", "q75", "q95", "max")
    quantiles = np.quantile(values.astype(np.float64), [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1])
    both = {"mean": values.mean(dtype=np.float64), "std": values.std(dtype=np.float64)}
    return {name: float(f"{value:.5g}") for name, value in (both | dict(zip(names, quantiles, strict=True))).items()}

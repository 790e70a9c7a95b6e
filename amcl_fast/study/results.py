"""What trainings of a study have measured, and what that says: means over seeds, differences of the same seed."""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from ..runs.read import Run

Row = dict[str, Any]

DEFAULT = "default"
"""In place of a backbone: the recipe's own."""


def accuracies(run: Run) -> Row:
    """kNN accuracies of a finished run, in percent: after which epochs, and of its baselines.

    Returns:
        `epochs` and `knn`, as long; `untrained` and `pixels`, None where they were not measured.

    Raises:
        ValueError: they are not those of its settings.
    """
    last, every = (int(run.setting(name)) for name in ("trainer.max_epochs", "knn.every_n_epochs"))
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


def differences(rows: Iterable[Row], reference: Row, other: Row) -> Row | None:
    """What one cell's last accuracies are above another's, seed by seed; None without a seed that both have.

    Args:
        rows: of trainings, with `seed`, `knn` and what names their cells.
        reference, other: cells, as `by_seed` takes them.

    Returns:
        `seeds`, `points` (of percent, as many), and their `spread`.
    """
    rows = list(rows)
    base, above = by_seed(rows, **reference), by_seed(rows, **other)
    seeds = [seed for seed in base if seed in above]
    if not seeds:
        return None
    points = [above[seed]["knn"][-1] - base[seed]["knn"][-1] for seed in seeds]
    return {"seeds": seeds, "points": [round(value, 4) for value in points], **spread(points)}

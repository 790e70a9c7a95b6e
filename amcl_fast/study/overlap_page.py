"""What the pages of studies of similarities share: numbers as text, parts of figures, the page itself."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from matplotlib.figure import Figure

from ..report.html import document, figure, grid, table
from ..runs.directory import RunDirectory
from .overlap import BIN_WIDTH, EDGES, VALUES, pooled
from .results import Row, by_seed, spread

WHAT = (
    "Similarities of pairs as the loss sees them, from the snapshots that every run keeps before and after training. "
    f"Overlap: Σ min(p, q) over bins of {BIN_WIDTH:g} from −1 to 1, of the shares of positives and of negatives in "
    "each; 0 apart, 1 equal. AUC: the probability that a positive is more similar than a negative, without bins. Of "
    "several heads both are of a pair's mean similarity, and of each head by itself. In Barlow Twins pairs are of "
    "channels; MoCo's queue holds random keys before training; SimSiam's loss has no negatives: those here are other "
    "images"
)


def told(of: Row, sign: str = "") -> str:
    """A mean of seeds with its standard error, if it has one."""
    error = of["standard_error"]
    return f"{of['mean']:{sign}.2f}" + ("" if error is None else f" ± {error:.2f}")


def axis_of(rows: Iterable[Row], moment: str, *, mean: bool = False) -> tuple[float, float]:
    """From the lowest to the highest similarity that a bin of `rows` holds, all kinds of pairs together."""
    held = np.zeros(len(EDGES) - 1, bool)
    for row in rows:
        for kind in row[moment]["mean_counts" if mean else "counts"]:
            held |= pooled([row], kind, moment, mean=mean) > 0
    places = held.nonzero()[0]
    return float(EDGES[places[0]]), float(EDGES[places[-1] + 1])


def legend(figure: Figure, columns: int = 4) -> None:
    """Put everything that a panel has a label of below the panels, once."""
    found = [axes.get_legend_handles_labels() for axes in figure.axes]
    handles = {name: handle for of_axes in found for handle, name in zip(*of_axes, strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, fontsize=9)


def numbers(results: Mapping[str, Any], cell: Row) -> dict[str, str]:
    """What the table has of a cell, by its head; the seeds' own overlaps, and what they are above the reference's."""
    rows = list(by_seed(results["trainings"], **cell).values())
    mean, above = (
        next((row for row in results[name] if cell.items() <= row.items()), None)
        for name in ("overlaps", "differences")
    )
    assert mean is not None  # of a cell with anything finished
    knn = [row["knn"] for row in rows if row["knn"] is not None]
    hardest = [np.mean(of["heads"]) for row in rows if (of := row["after"]["overlap"].get("hardest"))]
    return {
        "overlap of each seed": ", ".join(f"{VALUES['overlap'](row):.2f}" for row in rows),
        "mean": _mean(mean["overlap"]),
        "above the first, by seed": ", ".join(f"{value:+.2f}" for value in above["points"]) if above else "",
        "mean difference": _mean(above, "+") if above else "",
        "each head by itself": told(mean["head_overlap"]),
        "with the hardest negatives": told(spread([float(value) for value in hardest])) if hardest else "",
        "AUC": told(mean["auc"]),
        "overlap before training": told(mean["untrained_overlap"]),
        "kNN, %": f"{np.mean(knn):.1f}" if knn else "",
    }


def _mean(of: Row, sign: str = "") -> str:
    return told(of, sign) + (" (one seed)" if of["standard_error"] is None else "")


def page(
    results: Mapping[str, Any],
    title: str,
    drawn: Mapping[str, bytes],
    captions: Mapping[str, str],
    lines: Sequence[Mapping[str, str]],
) -> str:
    """The page of a study of similarities, complete but for its links to the trainings' reports.

    Args:
        results: what study.json holds.
        title: of the page; text.
        drawn: its figures, and
        captions: what they are, by the same names.
        lines: of the table, head to text.
    """
    rows = results["trainings"]
    parts = [
        f"<h1>{escape(title)}</h1><p class=sub>{len(rows)} of {len(rows) + results['left']} trainings have finished"
        + (f"; go on with <code>{escape(results['command'])}</code></p>" if results["left"] else "</p>"),
        *(figure(content, captions[name]) for name, content in drawn.items()),
    ]
    if rows:
        parts += ["<h2>Results</h2>", grid(list(lines[0]), [map(escape, line.values()) for line in lines])]
        parts += [_notes(results), "<h2>Trainings</h2>", _trainings(rows)]
    parts += [
        f"<h2>What was measured</h2><p>{escape(results['what'])}.</p>",
        "<h2>Made with</h2>" + table({"command": results["command"], **results["machine"], **results["environment"]}),
    ]
    return document(escape(title), parts)


def _notes(results: Mapping[str, Any]) -> str:
    if any(row["standard_error"] is None for row in results["differences"]):
        return "<p>Of a single seed no difference is known from chance: give more --seeds.</p>"
    if results["differences"]:
        return "<p>± is a standard error over seeds; differences are of trainings of the same seed.</p>"
    return ""


def _trainings(rows: Sequence[Row]) -> str:
    head = ["training", "pairs", "overlap", "AUC", "temperature", "kNN, %", "seconds", "device"]
    lines = []
    for row in rows:
        texts = [
            str(row["after"]["pairs"]),
            f"{VALUES['overlap'](row):.2f}",
            f"{VALUES['auc'](row):.3f}",
            str(row["tau_kind"]),
            "" if row["knn"] is None else f"{row['knn']:.1f}",
            str(row["seconds"]),
            str((row["machine"] or {}).get("device", "")),
        ]
        href = quote(str(RunDirectory(Path(row["run"])).page))
        lines.append([f'<a href="{href}">{escape(row["run"])}</a>', *map(escape, texts)])
    return grid(head, lines)

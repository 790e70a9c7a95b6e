"""Figures, tables and page of a comparison, drawn from what its study.json holds; pictures of differences for all."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..report.html import document, figure, grid, table
from ..report.style import BLUE, GREY, STYLE, label, png
from ..runs.directory import RunDirectory
from .results import MEASURES, Row

TITLES = {
    "knn": "kNN",
    "ridge": "ridge",
    "knn_recalibrated": "kNN, recalibrated",
    "ridge_recalibrated": "ridge, recalibrated",
}

DIFFERENCES = (
    "What each is above {reference}, in points of accuracy on held-out images, a panel a measure: a dot a seed, the "
    "diamond their mean, the line ± 2 standard errors. Of a single seed there is neither, and nothing is claimed."
)
"""Caption."""
_MEANS = "The accuracies themselves: a dot a seed, the diamond their mean, the line ± 2 standard errors."

Line = tuple[str, Sequence[float], Row]
"""A line of a panel: its name, a value a seed, their mean and standard error."""


def panels(lines: Mapping[str, Sequence[Line]], x_label: str, *, zero: bool) -> bytes:
    """A picture as PNG of lines, those of each measure in a panel of its own, with a point a seed.

    Args:
        lines: by the title of their panel; the names are the same in all.
        x_label: what the points are.
        zero: whether they are differences, of which zero is marked.
    """
    columns = min(2, len(lines))
    rows = -(-len(lines) // columns)
    count = max(map(len, lines.values()))
    with mpl.rc_context(STYLE):
        height = (0.9 + 0.3 * count) * rows + 0.3
        picture = Figure(figsize=(2.2 + 2.6 * columns, max(2.2, height)), layout="constrained")
        every = picture.subplots(rows, columns, squeeze=False, sharey=True, sharex=zero).flat
        for axes, (title, of_panel) in zip(every, lines.items(), strict=False):
            axes.set_title(title)
            _draw_lines(axes, of_panel)
            if zero:
                axes.axvline(0, color=GREY, linestyle="--", linewidth=1.2, zorder=1)
            axes.tick_params(axis="x", labelbottom=True)
        picture.supxlabel(x_label, fontsize=10)
        return png(picture)


def _draw_lines(axes: Axes, lines: Sequence[Line]) -> None:
    for place, (_, values, spread) in enumerate(lines):
        # Below the line, which would hide them; apart, where two seeds have the same.
        below = [place + 0.24 + 0.03 * (number % 3) for number in range(len(values))]
        axes.plot(values, below, "o", color=BLUE, markersize=3.5, alpha=0.7, linestyle="none")
        error = spread["standard_error"]
        if error is not None:
            axes.errorbar(
                spread["mean"], place, xerr=2 * error, fmt="D", color="black", markersize=5, capsize=3, elinewidth=1.3
            )
    axes.set_yticks(range(len(lines)), [label(name) for name, *_ in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def draw(results: Mapping[str, Any]) -> dict[str, bytes]:
    """The figures as PNG by their names: `differences` to the first cell, once there are any, and `accuracies`."""
    cells = [cell["cell"] for cell in results["cells"]]
    drawn = {}
    differences = [row for row in results["differences"] if row["minus"] == cells[0]]
    for name, rows, values, told in (
        ("differences", differences, "points", f"points above {cells[0]}"),
        ("accuracies", results["means"], "values", "accuracy (%)"),
    ):
        if rows:
            lines = {
                TITLES[measure]: [(row["cell"], row[values], row) for row in rows if row["measure"] == measure]
                for measure in MEASURES
            }
            drawn[name] = panels(lines, told, zero=values == "points")
    return drawn


def cells(results: Mapping[str, Any]) -> list[list[str]]:
    """The table of accuracies, its head first: a row a cell, as text."""
    head = ["", "seeds", *(f"{TITLES[name]}, %" for name in MEASURES), "τ, mean", "agreement of heads"]
    return [head, *(_of_cell(results, cell["cell"]) for cell in results["cells"] if _trainings_of(results, cell))]


def _trainings_of(results: Mapping[str, Any], cell: Row) -> list[Row]:
    return [row for row in results["trainings"] if row["cell"] == cell["cell"]]


def _of_cell(results: Mapping[str, Any], name: str) -> list[str]:
    means = {row["measure"]: row for row in results["means"] if row["cell"] == name}
    rows = [row for row in results["trainings"] if row["cell"] == name]
    taus = [of["mean"] for row in rows for of in row["tau"].get("negative", [])]
    agreements = [row["agreement"] for row in rows if row["agreement"] is not None]
    beside = [f"{sum(of) / len(of):.{digits}f}" if of else "" for of, digits in ((taus, 3), (agreements, 2))]
    return [name, str(len(rows)), *(with_error(means[measure]) for measure in MEASURES), *beside]


def differences(results: Mapping[str, Any]) -> list[list[str]]:
    """The table of differences, its head first: a row a pair of cells, those with the first cell before others."""
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in results["differences"]:
        found.setdefault((row["cell"], row["minus"]), {})[row["measure"]] = row
    head = ["", "above", "seeds", *(f"{TITLES[name]}, points" for name in MEASURES), "kNN by seed"]
    return [
        head,
        *(
            [
                *pair,
                str(len(rows["knn"]["seeds"])),
                *(with_error(rows[name], "+") for name in MEASURES),
                ", ".join(f"{value:+.1f}" for value in rows["knn"]["points"]),
            ]
            for pair, rows in found.items()
        ),
    ]


def with_error(row: Row, sign: str = "", digits: int = 2) -> str:
    """Mean ± standard error, of a difference (`sign` "+") with its sign; a single seed is called that."""
    error = row["standard_error"]
    return f"{row['mean']:{sign}.{digits}f}" + (" (one seed)" if error is None else f" ± {error:.{digits}f}")


def page(results: Mapping[str, Any], drawn: Mapping[str, bytes]) -> str:
    """The page, complete but for its links to the trainings' reports; `drawn`: the figures that there are."""
    rows = results["trainings"]
    title = escape(f"{results['title']}: {results['recipe']}")
    total = len(rows) + results["left"]
    parts = [
        f"<h1>{title}</h1><p class=sub>{len(rows)} of {total} trainings have finished"
        + (f"; go on with <code>{escape(results['command'])}</code></p>" if results["left"] else "</p>"),
    ]
    captions = {"differences": DIFFERENCES.format(reference=results["cells"][0]["cell"]), "accuracies": _MEANS}
    parts += [figure(content, captions[name]) for name, content in drawn.items()]
    if rows:
        parts += ["<h2>Accuracies</h2>", as_grid(cells(results))]
        if results["differences"]:
            parts += ["<h2>Differences of the same seed</h2>", as_grid(differences(results))]
        parts += [f"<p>{escape(note)}</p>" for note in notes(results)]
    parts += ["<h2>What is compared</h2>", table({cell["cell"]: cell["about"] for cell in results["cells"]})]
    if rows:
        parts += ["<h2>Trainings</h2>", trainings(rows)]
    parts += [
        f"<h2>What was measured</h2><p>{escape(results['what'])}.</p>",
        "<h2>Made with</h2>" + table({"command": results["command"], **results["machine"], **results["environment"]}),
    ]
    return document(title, parts)


def as_grid(texts: list[list[str]]) -> str:
    """A table as HTML: its head, then its rows, as text."""
    head, *lines = texts
    return grid(head, [map(escape, line) for line in lines])


def notes(results: Mapping[str, Any]) -> list[str]:
    """What holds of all numbers of a study."""
    found = []
    if any(row["standard_error"] is None for row in results["differences"]):
        found.append("Of a single seed no difference is known from chance: give more --seeds.")
    elif results["differences"]:
        found.append("± is a standard error over seeds; differences are of trainings of the same seed.")
    measured = [row["measures"] for row in results["trainings"] if row.get("measures")]
    if measured and all(not of["batch_norms"] for of in measured):
        found.append("The encoders have no BatchNorm: there is nothing to recalibrate, and the numbers are the same.")
    if images := results["trainings"][0]["measured_images"]:
        found.append(f"Of {images['queries']:,} held-out images, by {images['bank']:,} training images.")
    if any(row["standard_error"] is not None for row in results["differences"]):
        found.append(
            "Two standard errors hold the true difference in 82 % of studies of three seeds, in 88 % of five, in 92 % "
            "of ten (Student's t, of normal errors); where many are compared some lie beyond by chance."
        )
    return found


def trainings(rows: Sequence[Row]) -> str:
    """The table of trainings with the links to their reports, as HTML."""
    head = ["training", *(f"{TITLES[name]}, %" for name in MEASURES), "untrained encoder, %", "seconds", "device"]
    lines = []
    for row in rows:
        href = quote(str(RunDirectory(Path(row["run"])).page))
        numbers = [*((row.get("measures") or {}).get(name) for name in MEASURES), row["untrained"]]
        texts = ["" if value is None else f"{value:.2f}" for value in numbers]
        device = (row["machine"] or {}).get("device", "")
        link = f'<a href="{href}">{escape(row["run"])}</a>'
        lines.append([link, *map(escape, [*texts, str(row["seconds"]), str(device)])])
    return grid(head, lines)

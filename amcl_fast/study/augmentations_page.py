"""Figures, table and page of `amcl-fast study augmentations`, drawn from what its study.json holds."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..report.style import BLUE, CYCLE, RED, STYLE, WIDTH, png
from .overlap import EDGES, VALUES, pooled
from .overlap_page import axis_of, legend, numbers, told
from .overlap_page import page as page_of
from .results import Row, by_seed

_MARKS = "osD^v<>Xp*"

CAPTIONS = {
    "histograms.png": "Similarity of positives and of negatives after training, for each pair the mean of its heads: "
    "a column a set of augmentations, a row a number of heads, all seeds together. The overlap is what both cover.",
    "overlap.png": "Overlap of positives and negatives, and the probability that a positive is more similar than a "
    "negative: dots are seeds, lines their means. Dashed: each head by itself, on average.",
}


def draw(results: Mapping[str, Any]) -> dict[str, bytes]:
    """File name to PNG of the figures of what has finished."""
    with mpl.rc_context(STYLE):
        return {"histograms.png": png(_histograms(results)), "overlap.png": png(_lines(results))}


def _heads(number: int) -> str:
    return f"{number} head{'s' if number > 1 else ''}"


def _histograms(results: Mapping[str, Any]) -> Figure:
    rows = results["trainings"]
    heads = [number for number in results["heads"] if by_seed(rows, heads=number)]
    letters = [name for name in results["augmentations"] if by_seed(rows, augmentation=name)]
    figure = Figure(figsize=(max(WIDTH, 1.4 * len(letters) + 0.4), 1.5 * len(heads) + 0.9), layout="constrained")
    grid = figure.subplots(len(heads), len(letters), sharex=True, squeeze=False)
    axis = axis_of(rows, "after", mean=True)
    for line, number in zip(grid, heads, strict=True):
        for axes, name in zip(line, letters, strict=True):
            axes.set_yticks([])
            axes.set_xlim(axis)
            axes.xaxis.set_major_locator(MaxNLocator(4, prune="both"))
            axes.grid(visible=False)
            cell = {"augmentation": name, "heads": number}
            of_cell = list(by_seed(rows, **cell).values())
            title = f"{name}\n" if number == heads[0] else ""
            if of_cell:
                _filled(axes, of_cell)
                found = next(row for row in results["overlaps"] if cell.items() <= row.items())
                title += f"overlap {told(found['overlap'])}"
            axes.set_title(title, fontsize=9)
        line[0].set_ylabel(_heads(number))
    grid[-1, len(letters) // 2].set_xlabel("cosine similarity" + (", mean of the heads" if max(heads) > 1 else ""))
    handles = {
        name: handle for axes in grid.flat for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2, fontsize=9)
    return figure


def _filled(axes: Axes, rows: Sequence[Row]) -> None:
    for kind, name, colour, dashes in (("all", "negatives", RED, "--"), ("positive", "positives", BLUE, "-")):
        share = pooled(rows, kind, "after", mean=True)
        axes.stairs(share, EDGES, fill=True, color=colour, alpha=0.25)
        axes.stairs(share, EDGES, color=colour, linestyle=dashes, linewidth=1.3, label=name)
    axes.set_ylim(bottom=0)


def _lines(results: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(WIDTH, 5.0), layout="constrained")
    titles = {"overlap": "Overlap of positives and negatives", "auc": "How often a positive is above a negative"}
    for axes, (name, title) in zip(figure.subplots(2, 1, sharex=True), titles.items(), strict=True):
        for number, heads in enumerate(results["heads"]):
            _line(axes, results, heads, name, CYCLE[number % len(CYCLE)], _MARKS[number % len(_MARKS)])
        axes.set_title(title)
        axes.margins(x=0.08)
    figure.axes[0].set_ylim(bottom=0)
    figure.axes[1].set_xticks(range(len(results["augmentations"])), results["augmentations"])
    figure.axes[1].set_xlabel("augmentations")
    legend(figure)
    return figure


def _line(axes: Axes, results: Mapping[str, Any], heads: int, name: str, colour: str, mark: str) -> None:
    """Means over the sets of augmentations, and every seed's own value beside them."""
    places, values, own = [], [], []
    for place, letters in enumerate(results["augmentations"]):
        of_cell = list(by_seed(results["trainings"], augmentation=letters, heads=heads).values())
        if not of_cell:
            continue
        places.append(place)
        values.append([VALUES[name](row) for row in of_cell])
        own.append(statistics.fmean(VALUES[f"head_{name}"](row) for row in of_cell))
    if not places:
        return
    axes.plot(places, list(map(statistics.fmean, values)), color=colour, label=_heads(heads))
    for place, of_seeds in zip(places, values, strict=True):
        axes.plot([place] * len(of_seeds), of_seeds, mark, color=colour, markersize=4, alpha=0.7)
    if heads > 1:
        axes.plot(places, own, color=colour, linestyle="--", linewidth=1.2, label=f"one of {heads} by itself")


def page(results: Mapping[str, Any], drawn: Mapping[str, bytes]) -> str:
    """The page, complete but for its links to the trainings' reports; `drawn`: the figures, if there are any."""
    return page_of(results, title(results), drawn, CAPTIONS, cells(results))


def title(results: Mapping[str, Any]) -> str:
    """Of the page."""
    return f"Similarities by augmentations: {results['recipe']}"


def cells(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """The table of results, head to text: a row a set of augmentations and number of heads."""
    return [
        {"augmentations": cell["augmentation"], "heads": str(cell["heads"]), **numbers(results, cell)}
        for row in results["overlaps"]
        for cell in [{name: row[name] for name in ("augmentation", "heads")}]
    ]

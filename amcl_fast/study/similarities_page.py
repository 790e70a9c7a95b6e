"""Figures, table and page of `amcl-fast study similarities`, drawn from what its study.json holds."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..report.style import BLUE, GREY, RED, STYLE, png
from .overlap import EDGES, MOMENTS, pooled, temperatures
from .overlap_page import axis_of, legend, numbers, told
from .overlap_page import page as page_of
from .results import Row, by_seed

_DRAWN = {
    "all": ("all negatives", GREY, ":"),
    "hardest": ("hardest negatives", RED, "--"),
    "positive": ("positives", BLUE, "-"),
}

CAPTIONS = {
    "histograms.png": "Similarity of positives, of all negatives and of those that the loss selects, all heads and "
    "seeds together, a row a recipe. Areas are equal, scales of panels are not. Overlap: of positives and all "
    "negatives, in each head by itself, on average.",
    "temperatures.png": "Temperature over similarity, of recipes where it differs between pairs: mean, and from the "
    "tenth to the ninetieth percentile, all heads together.",
}


def draw(results: Mapping[str, Any]) -> dict[str, bytes]:
    """File name to PNG of the figures of what has finished; temperatures where one adapts."""
    with mpl.rc_context(STYLE):
        figures = {"histograms.png": _histograms(results)}
        if adaptive := _recipes(results, [row for row in results["trainings"] if row["tau_kind"] == "adaptive"]):
            figures["temperatures.png"] = _temperatures(adaptive, _recipes(results, results["trainings"]))
        return {name: png(figure) for name, figure in figures.items()}


def _recipes(results: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Of recipes with anything finished among the rows, what has."""
    found = {of["recipe"]: list(by_seed(rows, recipe=of["recipe"]).values()) for of in results["overlaps"]}
    return {recipe: of_recipe for recipe, of_recipe in found.items() if of_recipe}


def _panels(rows: int, *, alike: bool) -> tuple[Figure, Any]:
    """A row a recipe, a column a moment; `alike`: with the same heights in a row."""
    figure = Figure(figsize=(5.4, 1.6 * rows + 0.9), layout="constrained")
    grid = figure.subplots(rows, len(MOMENTS), sharex=True, sharey="row" if alike else False, squeeze=False)
    for axes in grid[-1]:
        axes.set_xlabel("cosine similarity")
    return figure, grid


def _histograms(results: Mapping[str, Any]) -> Figure:
    recipes = _recipes(results, results["trainings"])
    figure, grid = _panels(len(recipes), alike=False)
    axes_of = [axis_of(results["trainings"], moment) for moment in MOMENTS]
    for line, (recipe, rows) in zip(grid, recipes.items(), strict=True):
        found = next(row for row in results["overlaps"] if row["recipe"] == recipe)
        for axes, moment in zip(line, MOMENTS, strict=True):
            for kind, (name, colour, dashes) in _DRAWN.items():
                if kind not in rows[0][moment]["counts"]:
                    continue
                share = pooled(rows, kind, moment)
                axes.stairs(share, EDGES, fill=True, color=colour, alpha=0.15)
                axes.stairs(share, EDGES, color=colour, linestyle=dashes, linewidth=1.4, label=name)
            axes.set_ylim(bottom=0)
            axes.set_yticks([])
            axes.grid(visible=False)
            axes.set_xlim(min(low for low, _ in axes_of), max(high for _, high in axes_of))
            overlap = found["head_overlap" if moment == "after" else "untrained_head_overlap"]
            axes.set_title(f"{moment} training, overlap {told(overlap)}", fontsize=9)
        line[0].set_ylabel(_short(recipe, recipes), fontsize=9)
    legend(figure)
    return figure


def _temperatures(recipes: Mapping[str, Sequence[Row]], every: Mapping[str, Any]) -> Figure:
    figure, grid = _panels(len(recipes), alike=True)
    for line, (recipe, rows) in zip(grid, recipes.items(), strict=True):
        for axes, moment in zip(line, MOMENTS, strict=True):
            for kind, (name, colour, dashes) in _DRAWN.items():
                if kind in rows[0][moment]["tau"]:
                    _band(axes, temperatures(rows, kind, moment), name, colour, dashes)
            axes.set_title(f"{moment} training", fontsize=9)
        line[0].set_ylabel(f"{_short(recipe, every)}\ntemperature τ", fontsize=9)
    legend(figure)
    return figure


def _band(axes: Axes, found: Mapping[str, Any], name: str, colour: str, dashes: str) -> None:
    """At the middle of every bin that has enough pairs; of the others there is NaN, where lines have a gap."""
    middle = (EDGES[:-1] + EDGES[1:]) / 2
    axes.plot(middle, found["mean"], color=colour, linestyle=dashes, label=name, marker=".", markersize=3)
    axes.fill_between(middle, found["low"], found["high"], color=colour, alpha=0.15, linewidth=0)


def _short(recipe: str, recipes: Mapping[str, Any]) -> str:
    """A recipe's name without what the names of all begin with, in lines as long as a panel is high."""
    parts = [name.split("-") for name in recipes]
    same = 0
    while len(parts) > 1 and len({tuple(name[: same + 1]) for name in parts}) == 1:
        same += 1
    return textwrap.fill("-".join(recipe.split("-")[same:]) or recipe, 16)


def page(results: Mapping[str, Any], drawn: Mapping[str, bytes]) -> str:
    """The page, complete but for its links to the trainings' reports; `drawn`: the figures, if there are any."""
    return page_of(results, title(results), drawn, CAPTIONS, cells(results))


def title(results: Mapping[str, Any]) -> str:
    """Of the page."""
    return f"Similarities before and after training: {', '.join(results['recipes'])}"


def cells(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """The table of results, head to text: a row a recipe."""
    return [{"recipe": row["recipe"], **numbers(results, {"recipe": row["recipe"]})} for row in results["overlaps"]]

"""Figure, tables and page of `amcl-fast study epochs`, drawn from what its study.json holds."""

import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..report.html import document, figure, grid, table
from ..report.style import CYCLE, GREY, STYLE, png
from ..runs.directory import RunDirectory
from .comparison_page import DIFFERENCES, TITLES, as_grid, notes, panels, with_error
from .results import DEFAULT, MEASURES, Row, by_seed

_DASHES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)))

_CAPTION = (
    "kNN accuracy on held-out images over epochs, a panel a backbone: mean of the seeds, and from the lowest to the "
    "highest of them. Epoch 0, where it is drawn, is the encoder before training."
)


def draw(results: Mapping[str, Any]) -> bytes:
    """The figure as PNG: a panel a backbone with anything finished, a line a variant."""
    rows = results["trainings"]
    backbones = [name for name in results["backbones"] if by_seed(rows, backbone=name)]
    with mpl.rc_context(STYLE):
        picture = Figure(figsize=(max(5.4, 3.4 * len(backbones) + 0.4), 3.8), layout="constrained")
        panels = picture.subplots(1, len(backbones), sharey=True, squeeze=False)[0]
        for axes, backbone in zip(panels, backbones, strict=True):
            axes.set_title(_called(results, backbone))
            axes.set_xlabel("epoch")
            for number, variant in enumerate(results["variants"]):
                if of_cell := list(by_seed(rows, backbone=backbone, variant=variant).values()):
                    _draw_variant(axes, variant, of_cell, CYCLE[number % len(CYCLE)], _DASHES[number % len(_DASHES)])
            _draw_baselines(axes, [row for row in rows if row["backbone"] == backbone])
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[0].set_ylim(bottom=0)
        panels[0].set_ylabel("kNN accuracy (%)")
        lines = {name: line for axes in panels for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
        picture.legend(lines.values(), lines, loc="outside lower center", ncols=4, fontsize=9)
        return png(picture)


def draw_differences(results: Mapping[str, Any]) -> dict[str, bytes]:
    """The picture of the differences to the first variant, as PNG by its name; none as long as there are none."""
    measured = results["measures"]["differences"]
    lines = {
        TITLES[name]: [(_line(results, row), row["points"], row) for row in measured if row["measure"] == name]
        for name in MEASURES
    }
    if not measured:  # runs of before the measures, whose last kNN is known
        lines = {
            "kNN, last epoch": [(_line(results, row), row["points"], row) for row in results["differences"]],
        }
    if not all(lines.values()):
        return {}
    return {"differences": panels(lines, f"points above {results['variants'][0]}", zero=True)}


def _line(results: Mapping[str, Any], row: Row) -> str:
    several = len(results["backbones"]) > 1
    return f"{row['variant']}, {_called(results, row['backbone'])}" if several else row["variant"]


def _draw_variant(axes: Axes, variant: str, of_seeds: Sequence[Row], colour: str, dashes: Any) -> None:
    start = [row["untrained"] for row in of_seeds]
    epochs, values = of_seeds[0]["epochs"], [row["knn"] for row in of_seeds]
    if None not in start:
        epochs, values = [0, *epochs], [[first, *knn] for first, knn in zip(start, values, strict=True)]
    columns = list(zip(*values, strict=True))
    means = [statistics.fmean(column) for column in columns]
    axes.plot(epochs, means, color=colour, linestyle=dashes, label=variant)
    axes.plot(epochs[-1:], means[-1:], "o", color=colour, markersize=4)
    if len(values) > 1:
        axes.fill_between(
            epochs, list(map(min, columns)), list(map(max, columns)), color=colour, alpha=0.15, linewidth=0
        )


def _draw_baselines(axes: Axes, rows: Sequence[Row]) -> None:
    for name, told, dashes in (("untrained", "untrained encoder", "--"), ("pixels", "raw pixels", ":")):
        if found := [row[name] for row in rows if row[name] is not None]:
            axes.axhline(statistics.fmean(found), color=GREY, linestyle=dashes, linewidth=1.2, label=told)


def cells(results: Mapping[str, Any]) -> list[list[str]]:
    """The table of results, its head first: a row a backbone and variant, as text."""
    first = results["variants"][0]
    head = ["backbone", "variant", "epoch", "kNN of each seed, %", "mean", f"above {first}, by seed", "mean difference"]
    found = [head]
    for mean in results["accuracies"]:
        cell = {name: mean[name] for name in ("backbone", "variant")}
        last = [row["knn"][-1] for row in by_seed(results["trainings"], **cell).values()]
        above = next((row for row in results["differences"] if cell.items() <= row.items()), None)
        texts = [", ".join(f"{value:.1f}" for value in last), with_error(mean, digits=1)]
        texts += (
            [", ".join(f"{value:+.1f}" for value in above["points"]), with_error(above, "+", 1)] if above else ["", ""]
        )
        found.append([_called(results, mean["backbone"]), mean["variant"], str(mean["epoch"]), *texts])
    return found


def _called(results: Mapping[str, Any], backbone: str) -> str:
    return f"{results['framework']}-{results['dataset']}" if backbone == DEFAULT else backbone


def measures(results: Mapping[str, Any]) -> list[list[str]]:
    """The table of all that was measured at the end, its head first: a row a backbone and variant, as text."""
    first = results["variants"][0]
    names = [TITLES[name] for name in MEASURES]
    found = [["backbone", "variant", *(f"{name}, %" for name in names), *(f"{name}, above {first}" for name in names)]]
    every = {
        kind: {(row["backbone"], row["variant"], row["measure"]): row for row in results["measures"][kind]}
        for kind in ("means", "differences")
    }
    for backbone, variant in dict.fromkeys((backbone, variant) for backbone, variant, _ in every["means"]):
        texts = [
            with_error(row, sign) if (row := every[kind].get((backbone, variant, name))) else ""
            for kind, sign in (("means", ""), ("differences", "+"))
            for name in MEASURES
        ]
        found.append([_called(results, backbone), variant, *texts])
    return found


def page(results: Mapping[str, Any], drawn: Mapping[str, bytes]) -> str:
    """The page, complete but for its links to the trainings' reports; `drawn`: the figures that there are."""
    rows = results["trainings"]
    title = escape(f"Accuracy over epochs: {results['framework']} on {results['dataset']}")
    total = len(rows) + results["left"]
    parts = [
        f"<h1>{title}</h1><p class=sub>{len(rows)} of {total} trainings have finished"
        + (f"; go on with <code>{escape(results['command'])}</code></p>" if results["left"] else "</p>"),
    ]
    if drawn:
        captions = {"epochs": _CAPTION, "differences": DIFFERENCES.format(reference=results["variants"][0])}
        parts += [figure(content, captions[name]) for name, content in drawn.items()]
        parts += ["<h2>Results</h2>", as_grid(cells(results))]
        if results["measures"]["means"]:
            parts += ["<h2>Measured at the end</h2>", as_grid(measures(results))]
        parts += [f"<p>{escape(note)}</p>" for note in notes(results)]
        parts += ["<h2>Trainings</h2>", _trainings(rows)]
    parts += [
        f"<h2>What was measured</h2><p>{escape(results['what'])}.</p>",
        "<h2>Made with</h2>" + table({"command": results["command"], **results["machine"], **results["environment"]}),
    ]
    return document(title, parts)


def _trainings(rows: Sequence[Row]) -> str:
    head = ["training", "untrained encoder, %", "raw pixels, %", "last kNN, %", "seconds", "device"]
    lines = []
    for row in rows:
        href = quote(str(RunDirectory(Path(row["run"])).page))
        numbers = (row["untrained"], row["pixels"], row["knn"][-1])
        texts = ["" if value is None else f"{value:.1f}" for value in numbers]
        device = (row["machine"] or {}).get("device", "")
        link = f'<a href="{href}">{escape(row["run"])}</a>'
        lines.append([link, *map(escape, [*texts, str(row["seconds"]), str(device)])])
    return grid(head, lines)

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
from .results import DEFAULT, Row, by_seed

_DASHES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)))

_CAPTION = (
    "kNN accuracy on held-out images over epochs, a panel a backbone: mean of the seeds, and from the lowest to the "
    "highest of them. Epoch 0 is the encoder before training."
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
        texts = [", ".join(f"{value:.1f}" for value in last), _with_error(mean, "")]
        texts += (
            [", ".join(f"{value:+.1f}" for value in above["points"]), _with_error(above, "+")] if above else ["", ""]
        )
        found.append([_called(results, mean["backbone"]), mean["variant"], str(mean["epoch"]), *texts])
    return found


def _with_error(row: Row, sign: str) -> str:
    error = row["standard_error"]
    return f"{row['mean']:{sign}.1f}" + (" (one seed)" if error is None else f" ± {error:.1f}")


def _called(results: Mapping[str, Any], backbone: str) -> str:
    return f"{results['framework']}-{results['dataset']}" if backbone == DEFAULT else backbone


def page(results: Mapping[str, Any], drawn: bytes | None) -> str:
    """The page, complete but for its links to the trainings' reports; `drawn`: the figure, if there is one."""
    rows = results["trainings"]
    title = escape(f"Accuracy over epochs: {results['framework']} on {results['dataset']}")
    total = len(rows) + results["left"]
    parts = [
        f"<h1>{title}</h1><p class=sub>{len(rows)} of {total} trainings have finished"
        + (f"; go on with <code>{escape(results['command'])}</code></p>" if results["left"] else "</p>"),
    ]
    if drawn:
        head, *lines = cells(results)
        parts += [figure(drawn, _CAPTION), "<h2>Results</h2>", grid(head, [map(escape, row) for row in lines])]
        parts += _notes(results)
        parts += ["<h2>Trainings</h2>", _trainings(rows)]
    parts += [
        f"<h2>What was measured</h2><p>{escape(results['what'])}.</p>",
        "<h2>Made with</h2>" + table({"command": results["command"], **results["machine"], **results["environment"]}),
    ]
    return document(title, parts)


def _notes(results: Mapping[str, Any]) -> list[str]:
    notes = []
    if any(row["standard_error"] is None for row in results["differences"]):
        notes.append("Of a single seed no difference is known from chance: give more --seeds.")
    elif results["differences"]:
        notes.append("± is a standard error over seeds; differences are of trainings of the same seed.")
    images = results["trainings"][0]["measured_images"]
    if images:
        notes.append(f"Of {images['queries']:,} held-out images, by {images['bank']:,} training images.")
    return [f"<p>{escape(note)}</p>" for note in notes]


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

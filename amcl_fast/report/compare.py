"""Several runs side by side: one page with their results, kNN, losses and temperatures."""

import json
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..runs.directory import PAGE, SUMMARY
from ..runs.files import write_file
from ..runs.in_place import make_within
from ..runs.read import Run, read_run
from ..runs.settings import flattened
from .html import document, figure, grid
from .html import figures as framed
from .page import FINISHED, damaged_files, summarise, tell_damaged
from .style import BLUE, CYCLE, GREY, RED, STYLE, WIDTH, curve_axes, label, png

_CAPTIONS = {
    "knn.png": "kNN accuracy on held-out images after the share of each run's steps; the dot is the end.",
    "loss.png": "The loss of one batch. Losses of different frameworks do not compare: every panel has its own scale.",
    "temperature.png": "Mean temperature of positives (solid) and of selected negatives (dashed), ± one standard "
    "deviation; one line: of all pairs, or of anchors. A run that is missing has a constant temperature.",
}


def write_comparison(run_dirs: Sequence[Path], folder: Path | None = None) -> Path:
    """Write index.html, its figures and summary.json for several runs.

    Args:
        run_dirs: folders of the runs, in the order in which they are shown; ten at most.
        folder: where to write; default: `comparison` beside the first run.

    Returns:
        The path of the page, which is complete in itself.

    Raises:
        FileNotFoundError: one of them is not a run directory.
        ValueError: fewer than two runs or more than ten, one given twice, or metrics.csv of one is damaged.
        OSError: the page cannot be written.
    """
    if not 2 <= len(run_dirs) <= len(CYCLE):
        raise ValueError(f"run_dirs must be two to {len(CYCLE)} runs, got {len(run_dirs)}")
    if len({path.resolve() for path in run_dirs}) < len(run_dirs):
        raise ValueError(f"run_dirs must be different runs, got {', '.join(map(str, run_dirs))}")
    runs = [read_run(path, partly=True) for path in run_dirs]
    tell_damaged(runs)
    if folder is None:
        beside = run_dirs[0].resolve().parent
        folder = make_within(beside, beside / "comparison")
    folder.mkdir(parents=True, exist_ok=True)
    figures = _draw(runs)
    summaries = [summarise(run) for run in runs]
    for name, content in figures.items():
        write_file(folder / name, content)
    write_file(folder / SUMMARY, json.dumps(summaries, indent=2) + "\n")
    parts = [
        f"<h1>{len(runs)} runs</h1>",
        _table(runs, summaries),
        damaged_files(runs),
        framed(figure(content, _CAPTIONS[name], _seen(name, runs)) for name, content in figures.items()),
        _differences(runs),
    ]
    page = folder / PAGE
    write_file(page, document("Comparison of runs", parts))
    return page


def _differences(runs: list[Run]) -> str:
    """Table of the settings in which the runs differ, by the names that a command line takes."""
    settings = [
        {name.replace(".init_args.", "."): value for name, value in flattened(run.settings)}
        for run in runs
        if run.settings
    ]
    if len(settings) < len(runs):
        return ""
    names = dict.fromkeys(name for of_run in settings for name in of_run)
    rows = []
    for name in names:
        values = [of_run.get(name) for of_run in settings]
        if any(value != values[0] for value in values):
            rows.append([escape(name), *(escape("–" if value is None else str(value)) for value in values)])
    if not rows:
        return "<h2>Settings</h2><p>All runs have the same.</p>"
    count = f"{len(rows):,} of {len(names):,} settings differ" if len(rows) > 1 else "One setting differs"
    return f"<h2>Settings</h2><p>{count}.</p>" + grid(["setting", *map(_name, runs)], rows)


def _seen(name: str, runs: list[Run]) -> str:
    """What there is to see in a figure, with the last value of every run."""
    metric, what, unit = {
        "knn.png": ("knn", "kNN accuracy at the end", " %"),
        "loss.png": ("loss", "Loss at the end", ""),
        "temperature.png": ("tau_positive_mean", "Mean temperature of positives at the end", ""),
    }[name]
    last = (f"{_name(run)} {value:.4g}{unit}" for run in runs if (value := run.last(metric)) is not None)
    return f"{what}: {', '.join(last)}."


def _draw(runs: list[Run]) -> dict[str, bytes]:
    figures = {"knn.png": _knn, "loss.png": _losses, "temperature.png": _temperatures}
    with mpl.rc_context(STYLE):
        drawn = {name: draw(runs) for name, draw in figures.items()}
        return {name: png(picture) for name, picture in drawn.items() if picture is not None}


def _name(run: Run) -> str:
    return run.folder.resolve().name


def _knn(runs: list[Run]) -> Figure | None:
    measured = [(number, run) for number, run in enumerate(runs) if len(run.series("knn")[0])]
    if not measured:
        return None
    picture, axes = curve_axes("kNN accuracy on held-out images", "accuracy (%)")
    axes.set_xlabel("share of the steps")
    for number, run in measured:
        steps, values = run.series("knn")
        start = run.last("knn_untrained")
        share = [*([] if start is None else [0.0]), *(steps / max(steps[-1], 1))]
        heights = [*([] if start is None else [start]), *values]
        axes.plot(share, heights, color=CYCLE[number], label=label(f"{_name(run)}, {values[-1]:.1f} %"))
        axes.plot(share[-1:], heights[-1:], "o", color=CYCLE[number])
    pixels = [value for run in runs if (value := run.last("knn_pixels")) is not None]
    if pixels and max(pixels) - min(pixels) < 0.05:  # runs on the same data have the same
        axes.axhline(pixels[0], color=GREY, linestyle=":", label=f"raw pixels, {pixels[0]:.1f} %")
    axes.set_ylim(bottom=0)
    picture.legend(loc="outside lower center", ncols=1, fontsize=8.5)
    return picture


def _losses(runs: list[Run]) -> Figure | None:
    logged = [run for run in runs if len(run.series("loss")[0])]
    if not logged:
        return None
    picture, panels = _panels(logged, "Training loss")
    x = _axis(logged)
    for axes, run in zip(panels, logged, strict=True):
        steps, values = run.series("loss")
        axes.plot(x(run, steps), values, color=BLUE, marker="o" if len(steps) == 1 else "")
    return picture


def _temperatures(runs: list[Run]) -> Figure | None:
    adaptive = [run for run in runs if len(run.series("tau_positive_mean")[0]) and run.tau_kind != "constant"]
    if not adaptive:
        return None
    picture, panels = _panels(adaptive, "Temperature τ")
    x = _axis(adaptive)
    for axes, run in zip(panels, adaptive, strict=True):
        kinds = (("positive", BLUE, "-"), ("negative", RED, "--"))
        for kind, colour, dashes in kinds[:1] if run.tau_kind == "learned" or run.tau_per_anchor else kinds:
            steps, mean = run.series(f"tau_{kind}_mean")
            steps = x(run, steps)
            axes.plot(steps, mean, color=colour, linestyle=dashes, marker="o" if len(steps) == 1 else "")
            spread = run.series(f"tau_{kind}_std")[1]
            if len(spread) == len(mean):
                axes.fill_between(steps, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    return picture


def _in_epochs(runs: list[Run]) -> bool:
    """Whether all of them say how long an epoch is; else none is drawn in epochs."""
    return all(run.epochs(np.zeros(1)) is not None for run in runs)


def _axis(runs: list[Run]) -> Callable[[Run, NDArray[np.float64]], NDArray[np.float64]]:
    """Where steps of a run stand on the axis that all of them share."""
    in_epochs = _in_epochs(runs)
    return lambda run, steps: run.x(steps) if in_epochs else steps


def _panels(runs: list[Run], title: str) -> tuple[Figure, list[Any]]:
    """A small panel a run."""
    columns = min(2, len(runs))
    rows = -(-len(runs) // columns)
    picture = Figure(figsize=(WIDTH, 1.9 * rows + 0.5), layout="constrained")
    picture.suptitle(title, x=0.01, ha="left", fontsize=11)
    picture.supxlabel("epoch" if _in_epochs(runs) else "optimiser step", fontsize=10)
    panels = list(picture.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[len(runs) :]:
        axes.set_axis_off()
    for axes, run in zip(panels, runs, strict=False):
        axes.set_title(_name(run), fontsize=8.5)
    return picture, panels[: len(runs)]


def _table(runs: list[Run], summaries: list[dict[str, Any]]) -> str:
    heads = ["run", "framework", "heads", "kNN, %", "best kNN", "linear, %", "τ of positives", "τ of negatives"]
    heads += ["perplexity", "agreement of heads"]
    rows = []
    for run, summary in zip(runs, summaries, strict=True):
        shot = run.after or run.before
        cells = (
            summary["run"] + ("" if summary["finished"] else f" ({FINISHED[summary['finished']]})"),
            shot.framework if shot else "",
            len(shot.positive_tau) if shot else "",
            _number(summary["knn"]["trained"]),
            _number(summary["knn"]["best"]),
            ", ".join(f"{value:.1f} ({name})" for name, value in summary["linear"].items()),
            _spread(summary, "positive"),
            _spread(summary, "negative"),
            _number(summary["perplexity"], 3),
            _number(summary["agreement"], 2),
        )
        rows.append([escape(str(cell)) for cell in cells])
    return grid(heads, rows)


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _spread(summary: dict[str, Any], kind: str) -> str:
    mean, spread = (summary["temperature"][f"{kind}_{name}"] for name in ("mean", "std"))
    if mean is None:
        return ""
    return f"{mean:.3f}" if not spread else f"{mean:.3f} ± {spread:.3f}"

"""The pictures of a report: curves, histograms and augmented pairs, as PNG bytes.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; lines differ in dashes, too.
"""

import io
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from .run import Run
from .snapshot import Snapshot

_BLUE, _RED, _GREY = "#0072B2", "#D55E00", "#6E6E6E"
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8A8A8A",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.dpi": 150,
}
_KINDS = (
    ("positive", "positives", _BLUE, "-"),
    ("hardest", "hardest negatives", _RED, "--"),
    ("random", "all negatives", _GREY, ":"),
)


def draw_figures(run: Run) -> dict[str, bytes]:
    """File name to PNG of every figure for which the run holds the numbers, in the order of the page."""
    figures = {
        "knn.png": _knn,
        "loss.png": _loss,
        "temperature.png": _temperature,
        "histograms.png": _histograms,
        "pairs.png": _pairs,
    }
    with mpl.rc_context(_STYLE):
        drawn = {name: draw(run) for name, draw in figures.items()}
        return {name: _png(figure) for name, figure in drawn.items() if figure is not None}


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _curve_axes(title: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel(y_label)
    return figure, axes


def _loss(run: Run) -> Figure | None:
    steps, values = run.series("loss")
    if not len(steps):
        return None
    figure, axes = _curve_axes("Training loss", "loss")
    axes.plot(steps, values, color=_BLUE, marker="o" if len(steps) == 1 else "")
    axes.set_xlim(left=0)
    return figure


def _knn(run: Run) -> Figure | None:
    steps, values = run.series("knn")
    baselines = [
        (label, value)
        for label, value in (
            ("untrained encoder", run.last("knn_untrained")),
            ("raw pixels", run.last("knn_pixels")),
        )
        if value is not None
    ]
    if not len(steps) and not baselines:
        return None
    figure, axes = _curve_axes("kNN accuracy on held-out images", "accuracy (%)")
    axes.plot(steps, values, color=_BLUE, marker="o", markersize=4, label="trained encoder")
    for (label, value), colour, dashes in zip(baselines, (_RED, _GREY), ("--", ":"), strict=False):
        axes.axhline(value, color=colour, linestyle=dashes, label=f"{label}, {value:.1f} %")
    if len(steps):
        axes.annotate(
            f"{values[-1]:.1f} %",
            (steps[-1], values[-1]),
            xytext=(0, 7),
            textcoords="offset points",
            ha="right",
            color=_BLUE,
            fontweight="bold",
        )
    axes.set_xlim(left=0)
    highest = max([*values, *(value for _, value in baselines)])
    axes.set_ylim(0, min(105, 1.25 * highest + 1))
    axes.legend(loc="upper left", ncols=3, fontsize=9)
    return figure


def _temperature(run: Run) -> Figure | None:
    lines = [
        (label, colour, dashes, f"tau_{name}")
        for name, label, colour, dashes in (
            ("positive", "positives", _BLUE, "-"),
            ("negative", "selected negatives", _RED, "--"),
        )
        if len(run.series(f"tau_{name}_mean")[0])
    ]
    if not lines:
        return None
    snapshot = run.before or run.after
    if snapshot is not None and snapshot.constant_tau:
        figure, axes = _curve_axes("Temperature: constant", "temperature τ")
        axes.axhline(snapshot.tau_min, color=_BLUE)
        axes.text(0.5, 0.54, f"τ = {snapshot.tau_min:g}", transform=axes.transAxes, ha="center", color=_BLUE)
        axes.set_ylim(0, 2 * snapshot.tau_min)
        axes.set_xlim(0, max(run.series(lines[0][3] + "_mean")[0]))
        return figure
    figure, axes = _curve_axes("Temperature: adaptive", "temperature τ")
    top = 0.0
    for label, colour, dashes, name in lines:
        steps, mean = run.series(f"{name}_mean")
        top = max(top, *mean)
        axes.plot(steps, mean, color=colour, linestyle=dashes, label=f"{label}, mean")
        spread = run.series(f"{name}_std")[1]
        if len(spread) == len(mean):
            top = max(top, *(mean + spread))
            band = f"{label}, ± 1 standard deviation"
            axes.fill_between(steps, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0, label=band)
        if len(run.series(f"{name}_min")[0]):
            axes.plot(*run.series(f"{name}_min"), color=colour, linestyle=":", linewidth=1.3, label=f"{label}, minimum")
    if snapshot is not None:
        axes.axhline(snapshot.tau_min, color=_GREY, linewidth=1.0)
        axes.annotate(
            f"lower bound {snapshot.tau_min:g}",
            (1, snapshot.tau_min),
            xycoords=("axes fraction", "data"),
            xytext=(-4, -4),
            textcoords="offset points",
            ha="right",
            va="top",
            color=_GREY,
            fontsize=8.5,
        )
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.06 * top)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    return figure


def _histograms(run: Run) -> Figure | None:
    """Similarities and temperatures before (above) and after training (below), as in the paper's Figure 3."""
    shots = [shot for shot in (run.before, run.after) if shot is not None]
    if not shots:
        return None
    quantities = {"similarity": "cosine similarity"}
    if not shots[0].constant_tau:
        quantities["tau"] = "temperature τ"
    figure = Figure(figsize=(7.2, 2.2 * len(shots) + 0.6), layout="constrained")
    grid = figure.subplots(len(shots), len(quantities), sharex="col", squeeze=False)
    for column, (quantity, label) in enumerate(quantities.items()):
        bins = _bins(shots, quantity)
        for row, shot in enumerate(shots):
            axes = grid[row, column]
            _histogram(axes, shot, quantity, bins)
            moment = "Before training" if shot is run.before else f"After {shot.step:,} steps"
            axes.set_title(moment if column == 0 else "")
            axes.set_ylabel("share of pairs" if column == 0 else "")
        grid[-1, column].set_xlabel(label)
        grid[-1, column].xaxis.set_major_locator(MaxNLocator(5))
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3, fontsize=9)
    return figure


def _histogram(axes: Axes, shot: Snapshot, quantity: str, bins: NDArray[np.float64]) -> None:
    for kind, name, colour, dashes in _KINDS:
        if kind == "hardest" and not shot.top_k:
            continue  # the loss takes all negatives
        values = getattr(shot, f"{kind}_{quantity}").ravel()
        share = np.histogram(values, bins)[0] / len(values)
        axes.stairs(share, bins, fill=True, color=colour, alpha=0.15)
        axes.stairs(share, bins, color=colour, linestyle=dashes, linewidth=1.4, label=name)
    axes.set_yticks([])
    axes.set_ylim(bottom=0)
    axes.grid(visible=False)


def _bins(shots: list[Snapshot], quantity: str) -> NDArray[np.float64]:
    """60 bins over all that the snapshots hold."""
    values = [getattr(shot, f"{kind}_{quantity}") for shot in shots for kind, *_ in _KINDS]
    low, high = min(v.min() for v in values), max(v.max() for v in values)
    return np.linspace(low, max(high, low + 1e-6), 61)


def _pairs(run: Run) -> Figure | None:
    """The first pairs of views: an image a column."""
    snapshot = run.before or run.after
    if snapshot is None or not snapshot.views.shape[1]:
        return None
    views = snapshot.views
    count, height, width = views.shape[1:4]
    figure = Figure(figsize=(7.2, 7.2 / count * 2 * height / width + 0.35))
    axes = figure.add_axes((0.08, 0.0, 0.92, 1 - 0.35 / figure.get_figheight()))
    gap = max(1, width // 16)
    sheet = np.full((2 * height + gap, count * (width + gap) - gap, 3), 255, np.uint8)
    for row in range(2):
        for column in range(count):
            top, left = row * (height + gap), column * (width + gap)
            sheet[top : top + height, left : left + width] = views[row, column]
    axes.imshow(sheet, interpolation="nearest")
    axes.set_title("Augmented views: an image a column", pad=5)
    axes.set_yticks([height / 2, height * 1.5 + gap], ["view 1", "view 2"])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    return figure

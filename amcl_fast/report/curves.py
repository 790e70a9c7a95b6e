"""Curves of a run over its training."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..runs.read import Run
from .style import BLUE, CYCLE, GREY, RED, WIDE, WIDTH, curve_axes, logarithmic

_MOST_TERMS, MOST_NAMED = 8, 24
"""Terms of a loss that have room beside each other, and heads that a legend names."""


def loss(run: Run) -> Figure | None:
    """Training loss."""
    return _curve(run, "loss", "Training loss", "loss")


def learning_rate(run: Run) -> Figure | None:
    """Learning rate of the first group of parameters, of each logged step."""
    steps, values = run.series("lr")
    if not len(steps):
        return None
    figure, axes = curve_axes("Learning rate", "learning rate", run)
    axes.plot(run.x(steps), values, color=BLUE, marker="o" if len(steps) == 1 else "")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    return figure


def gradient_norm(run: Run) -> Figure | None:
    """Norm of the whole gradient, before it is clipped."""
    return _curve(run, "gradient_norm", "Gradient norm, before any clipping", "norm")


def _curve(run: Run, name: str, title: str, y_label: str) -> Figure | None:
    if not len(run.series(name)[0]):
        return None
    figure, axes = curve_axes(title, y_label, run)
    _line(axes, run, name)
    axes.set_xlim(left=0)
    return figure


def _line(axes: Axes, run: Run, name: str) -> None:
    """A metric over the training; what is wide has a logarithmic scale."""
    steps, values = run.series(name)
    axes.plot(run.x(steps), values, color=BLUE, marker="o" if len(steps) == 1 else "")
    if 0 < WIDE * values.min() < values.max():
        logarithmic(axes, "y")


def parts(run: Run) -> Figure | None:
    """The terms of a loss that has several, the first eight, each with a scale of its own, before their weights."""
    names = [name for name in run.metrics if name.startswith("loss_")][:_MOST_TERMS]
    if not names:
        return None
    figure = Figure(figsize=(WIDTH, 2.4), layout="constrained")
    figure.supxlabel(run.x_label, fontsize=10)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        _line(axes, run, name)
        axes.set_title(name.removeprefix("loss_"))
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(3))
    return figure


def throughput(run: Run) -> Figure | None:
    """Images per second, and the share of the time in which training waited for them."""
    if not len(run.series("images_per_second")[0]):
        return None
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    speed, waiting = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for axes, name, factor, label in (
        (speed, "images_per_second", 1, "images/s"),
        (waiting, "wait_share", 100, "waiting (%)"),
    ):
        steps, values = run.series(name)
        axes.plot(run.x(steps), factor * values, color=BLUE, marker="o" if len(steps) == 1 else "")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
    waiting.set_ylim(top=max(5.0, waiting.get_ylim()[1]))
    speed.set_title("Throughput, and waiting for data")
    waiting.set_xlabel(run.x_label)
    waiting.set_xlim(left=0)
    figure.align_ylabels()
    return figure


def knn(run: Run) -> Figure | None:
    """Accuracy of kNN above its two baselines, and of online probes beside it."""
    steps, values = run.series("knn")
    baselines = [
        (label, value, colour, dashes)
        for label, name, colour, dashes in (
            ("untrained encoder", "knn_untrained", RED, "--"),
            ("raw pixels", "knn_pixels", GREY, ":"),
            ("probe, untrained encoder", "probe/untrained", CYCLE[2], "-."),
        )
        if (value := run.last(name)) is not None
    ]
    probes = [name for name in run.metrics if name.startswith("probe/") and name != "probe/untrained"]
    if not len(steps) and not baselines and not probes:
        return None
    title = "Accuracy on held-out images" if probes else "kNN accuracy on held-out images"
    figure, axes = curve_axes(title, "accuracy (%)", run)
    name = "kNN, trained encoder" if probes else "trained encoder"
    axes.plot(run.x(steps), values, color=BLUE, marker="o", markersize=4, label=name)
    for label, value, colour, dashes in baselines:
        axes.axhline(value, color=colour, linestyle=dashes, label=f"{label}, {value:.1f} %")
    highest = max([*values, *(value for _, value, *_ in baselines), *(run.series(probe)[1].max() for probe in probes)])
    for probe, colour, marker in zip(probes, CYCLE[2:], "s^vD<>ph", strict=False):
        at, of_probe = run.series(probe)
        what = probe.removeprefix("probe/").replace("_", " ")
        label = f"{'linear probe' if what == 'accuracy' else f'probe, {what}'}, {of_probe[-1]:.1f} %"
        axes.plot(run.x(at), of_probe, color=colour, marker=marker, markersize=4, label=label)
    if len(steps):
        axes.annotate(
            f"{values[-1]:.1f} %",
            (run.x(steps)[-1], values[-1]),
            xytext=(0, 7),
            textcoords="offset points",
            ha="right",
            color=BLUE,
            fontweight="bold",
        )
    axes.set_xlim(left=0)
    axes.set_ylim(0, min(105, 1.15 * highest + 1))
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    return figure


def temperature(run: Run) -> Figure | None:
    """Mean, spread and minimum of the temperatures that enter the loss, all heads together."""
    kinds = [("positive", "positives", BLUE, "-"), ("negative", "selected negatives", RED, "--")]
    if run.tau_per_anchor:
        kinds = [("positive", "anchors", BLUE, "-")]
    lines = [
        (label, colour, dashes, f"tau_{name}")
        for name, label, colour, dashes in kinds
        if len(run.series(f"tau_{name}_mean")[0])
    ]
    if not lines:
        return None
    snapshot = run.before or run.after
    if run.tau_kind == "learned":
        return _curve(run, "tau_positive_mean", "Temperature: learned, one for all pairs", "temperature τ")
    if snapshot is not None and snapshot.constant_tau:
        figure, axes = curve_axes("Temperature: constant", "temperature τ", run)
        axes.axhline(snapshot.tau_min, color=BLUE)
        axes.text(0.5, 0.54, f"τ = {snapshot.tau_min:g}", transform=axes.transAxes, ha="center", color=BLUE)
        axes.set_ylim(0, 2 * snapshot.tau_min)
        axes.set_xlim(0, max(run.x(np.ones(1))[0], *run.x(run.series(lines[0][3] + "_mean")[0])))
        return figure
    title = "Temperature: adaptive" + (", one per anchor" if run.tau_per_anchor else "")
    figure, axes = curve_axes(title, "temperature τ", run)
    top = 0.0
    for label, colour, dashes, name in lines:
        steps, mean = run.series(f"{name}_mean")
        top = max(top, *mean)
        marker = "o" if len(steps) == 1 else ""
        axes.plot(run.x(steps), mean, color=colour, linestyle=dashes, marker=marker, label=f"{label}, mean")
        spread = run.series(f"{name}_std")[1]
        if len(spread) == len(mean):
            top = max(top, *(mean + spread))
            band = f"{label}, ± 1 std"
            lower, upper = mean - spread, mean + spread
            axes.fill_between(run.x(steps), lower, upper, color=colour, alpha=0.15, linewidth=0, label=band)
        lowest_at, lowest = run.series(f"{name}_min")
        if len(lowest):
            axes.plot(run.x(lowest_at), lowest, color=colour, linestyle=":", linewidth=1.3, label=f"{label}, minimum")
    if snapshot is not None and not snapshot.pinned:
        axes.axhline(snapshot.tau_min, color=GREY, linewidth=1.0)
        above = snapshot.tau_min < 0.1 * top  # below it there is no room
        axes.annotate(
            f"lower bound {snapshot.tau_min:g}",
            (1, snapshot.tau_min),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 4 if above else -4),
            textcoords="offset points",
            ha="right",
            va="bottom" if above else "top",
            color=GREY,
            fontsize=8.5,
        )
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.06 * top)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8.5)
    return figure


def head_temperatures(run: Run) -> Figure | None:
    """Mean temperature of every head, at the end of every epoch."""
    kinds = {", positives": ("positive", "-"), ", negatives": ("negative", "--")}
    if run.tau_per_anchor:
        kinds = {"": ("positive", "-")}
    heads = len(run.heads("positive"))
    if not heads:
        return None
    figure, axes = curve_axes("Temperature of each head", "mean temperature τ", run)
    for label, (kind, dashes) in kinds.items():
        for head, (steps, values) in enumerate(run.heads(kind)):
            axes.plot(
                run.x(steps),
                values,
                color=CYCLE[head % len(CYCLE)],
                linestyle=dashes,
                marker="o",
                markersize=3,
                label=f"head {head + 1}{label}" if heads <= MOST_NAMED else None,
            )
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.06 * max(line.get_ydata().max() for line in axes.lines))  # type: ignore[union-attr]
    if heads <= MOST_NAMED:
        figure.legend(loc="outside lower center", ncols=2, fontsize=8.5)
    return figure

"""Curves of a run over its training."""

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..runs.read import Run
from .style import BLUE, CYCLE, GREY, RED, curve_axes


def loss(run: Run) -> Figure | None:
    """Training loss."""
    steps, values = run.series("loss")
    if not len(steps):
        return None
    figure, axes = curve_axes("Training loss", "loss")
    axes.plot(steps, values, color=BLUE, marker="o" if len(steps) == 1 else "")
    axes.set_xlim(left=0)
    return figure


def parts(run: Run) -> Figure | None:
    """The terms of a loss that has several, each with a scale of its own, before their weights."""
    names = [name for name in run.metrics if name.startswith("loss_")]
    if not names:
        return None
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        steps, values = run.series(name)
        axes.plot(steps, values, color=BLUE, marker="o" if len(steps) == 1 else "")
        if 0 < 20 * values.min() < values.max():
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")  # the scale's own writes formulas, which are not set here
        axes.set_title(name.removeprefix("loss_"))
        axes.set_xlim(left=0)
        axes.set_xlabel("optimiser step")
        axes.xaxis.set_major_locator(MaxNLocator(4))
    return figure


def knn(run: Run) -> Figure | None:
    """kNN accuracy above its two baselines."""
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
    figure, axes = curve_axes("kNN accuracy on held-out images", "accuracy (%)")
    axes.plot(steps, values, color=BLUE, marker="o", markersize=4, label="trained encoder")
    for (label, value), colour, dashes in zip(baselines, (RED, GREY), ("--", ":"), strict=False):
        axes.axhline(value, color=colour, linestyle=dashes, label=f"{label}, {value:.1f} %")
    if len(steps):
        axes.annotate(
            f"{values[-1]:.1f} %",
            (steps[-1], values[-1]),
            xytext=(0, 7),
            textcoords="offset points",
            ha="right",
            color=BLUE,
            fontweight="bold",
        )
    axes.set_xlim(left=0)
    highest = max([*values, *(value for _, value in baselines)])
    axes.set_ylim(0, min(105, 1.25 * highest + 1))
    axes.legend(loc="upper left", ncols=3, fontsize=9)
    return figure


def temperature(run: Run) -> Figure | None:
    """Mean, spread and minimum of the temperatures that enter the loss, all heads together."""
    lines = [
        (label, colour, dashes, f"tau_{name}")
        for name, label, colour, dashes in (
            ("positive", "positives", BLUE, "-"),
            ("negative", "selected negatives", RED, "--"),
        )
        if len(run.series(f"tau_{name}_mean")[0])
    ]
    if not lines:
        return None
    snapshot = run.before or run.after
    if snapshot is not None and snapshot.constant_tau:
        figure, axes = curve_axes("Temperature: constant", "temperature τ")
        axes.axhline(snapshot.tau_min, color=BLUE)
        axes.text(0.5, 0.54, f"τ = {snapshot.tau_min:g}", transform=axes.transAxes, ha="center", color=BLUE)
        axes.set_ylim(0, 2 * snapshot.tau_min)
        axes.set_xlim(0, max(1, *run.series(lines[0][3] + "_mean")[0]))
        return figure
    figure, axes = curve_axes("Temperature: adaptive", "temperature τ")
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
        axes.axhline(snapshot.tau_min, color=GREY, linewidth=1.0)
        axes.annotate(
            f"lower bound {snapshot.tau_min:g}",
            (1, snapshot.tau_min),
            xycoords=("axes fraction", "data"),
            xytext=(-4, -4),
            textcoords="offset points",
            ha="right",
            va="top",
            color=GREY,
            fontsize=8.5,
        )
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.06 * top)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    return figure


def head_temperatures(run: Run) -> Figure | None:
    """Mean temperature of every head, at the end of every epoch."""
    kinds = {"positives": ("positive", "-"), "selected negatives": ("negative", "--")}
    heads = len(run.heads("positive"))
    if not heads:
        return None
    figure, axes = curve_axes("Temperature of each head", "mean temperature τ")
    for label, (kind, dashes) in kinds.items():
        for head, (steps, values) in enumerate(run.heads(kind)):
            axes.plot(
                steps,
                values,
                color=CYCLE[head % len(CYCLE)],
                linestyle=dashes,
                marker="o",
                markersize=3,
                label=f"head {head + 1}, {label}",
            )
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=min(3, heads), fontsize=9)
    return figure

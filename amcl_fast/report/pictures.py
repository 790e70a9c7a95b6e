"""Pictures of single moments of a run: pairs, heads, the embedding."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..runs.neighbours import Neighbours
from ..runs.read import Run
from ..runs.snapshot import Snapshot
from .curves import MOST_NAMED
from .style import BLUE, CYCLE, GREY, ON_ANY, OTHER, RED, SAME, WIDE, WIDTH, logarithmic
from .style import label as shown


def _shots(run: Run) -> Iterator[Snapshot]:
    yield from (shot for shot in (run.before, run.after) if shot is not None)


def _moment(run: Run, shot: Snapshot) -> str:
    return "Before training" if shot is run.before else f"After {shot.step:,} steps"


def _of_channels(shot: Snapshot) -> bool:
    return shot.framework == "BarlowTwins"


def _kinds(shot: Snapshot) -> dict[str, tuple[str, str, str]]:
    """Kind of pair to (name, colour, dashes); a loss without a choice among its negatives has no hardest ones."""
    names = {
        "BarlowTwins": ("a channel and itself", "", "two channels"),
        "MoCo": ("positives", "hardest keys of the queue", "all keys of the queue"),
        "SimSiam": ("positives", "", "other images (not in the loss)"),
    }
    positive, hardest, every = names.get(shot.framework, ("positives", "hardest negatives", "all negatives"))
    kinds = {"positive": (positive, BLUE, "-"), "random": (every, GREY, ":")}
    return {**kinds, "hardest": (hardest, RED, "--")} if shot.top_k else kinds


def histograms(run: Run) -> Figure | None:
    """Similarities and temperatures before (above) and after training (below), as in the paper's Figure 3."""
    shots = list(_shots(run))
    if not shots:
        return None
    quantities = {"similarity": "correlation of channels" if _of_channels(shots[0]) else "cosine similarity"}
    if run.tau_kind == "adaptive" and not run.tau_per_anchor:
        quantities["tau"] = "temperature τ"
    figure = Figure(figsize=(WIDTH, 1.8 * len(shots) + 0.7), layout="constrained")
    grid = figure.subplots(len(shots), len(quantities), sharex="col", squeeze=False)
    for column, (quantity, label) in enumerate(quantities.items()):
        bins = _bins(shots, quantity)
        for row, shot in enumerate(shots):
            axes = grid[row, column]
            _histogram(axes, shot, quantity, bins)
            axes.set_title(_moment(run, shot) if column == 0 else "")
            axes.set_ylabel("share of pairs" if column == 0 else "")
        grid[-1, column].set_xlabel(label)
        grid[-1, column].xaxis.set_major_locator(MaxNLocator(4))
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 if len(labels) > 2 else 1, fontsize=8.5)
    return figure


def _histogram(axes: Axes, shot: Snapshot, quantity: str, bins: NDArray[np.float64]) -> None:
    for kind, (name, colour, dashes) in _kinds(shot).items():
        values = getattr(shot, f"{kind}_{quantity}").ravel()
        share = np.histogram(values, bins)[0] / len(values)
        axes.stairs(share, bins, fill=True, color=colour, alpha=0.15)
        axes.stairs(share, bins, color=colour, linestyle=dashes, linewidth=1.4, label=name)
    axes.set_yticks([])
    axes.set_ylim(bottom=0)
    axes.grid(visible=False)


def _bins(shots: list[Snapshot], quantity: str) -> NDArray[np.float64]:
    """60 bins over all that the snapshots hold."""
    values = [getattr(shot, f"{kind}_{quantity}") for shot in shots for kind in _kinds(shot)]
    low, high = min(v.min() for v in values), max(v.max() for v in values)
    return np.linspace(low, max(high, low + 1e-6), 61)


def anchors(run: Run) -> Figure | None:
    """Of every head the perplexity of its anchors' softmax, and their τ where each has one of its own."""
    shots = [shot for shot in _shots(run) if shot.perplexity.size]
    if not shots:
        return None
    quantities = {"positive_tau": "temperature τ of an anchor"} if run.tau_per_anchor else {}
    quantities["perplexity"] = "perplexity, share of the negatives"
    figure = Figure(figsize=(WIDTH, 1.5 * len(shots) + 0.9), layout="constrained")
    grid = figure.subplots(len(shots), len(quantities), sharex="col", squeeze=False)
    for column, (quantity, label) in enumerate(quantities.items()):
        values = [getattr(shot, quantity) for shot in shots]
        low, high = min(of.min() for of in values), max(of.max() for of in values)
        high = 1.0 if quantity == "perplexity" else 1.05 * high
        log = 0 < WIDE * low < high
        bins = np.geomspace(low, 1.001 * high, 61) if log else np.linspace(0, high, 61)
        for axes, shot, of_heads in zip(grid[:, column], shots, values, strict=True):
            for head, of_anchors in enumerate(of_heads):
                share = np.histogram(of_anchors, bins)[0] / len(of_anchors)
                colour, dashes = CYCLE[head % len(CYCLE)], _DASHES[head % len(_DASHES)]
                axes.stairs(share, bins, fill=True, color=colour, alpha=0.12)
                axes.stairs(share, bins, color=colour, linestyle=dashes, linewidth=1.3, label=f"head {head + 1}")
            axes.set_title(_moment(run, shot) if column == 0 else "")
            axes.set_ylabel("share of anchors" if column == 0 else "", fontsize=9)
            axes.set_yticks([])
            axes.set_ylim(bottom=0)
            axes.grid(visible=False)
        last = grid[-1, column]
        last.set_xlabel(label, fontsize=9)
        if log:
            logarithmic(last, "x")
        else:
            last.set_xlim(0, high)
            last.xaxis.set_major_locator(MaxNLocator(4))
    if 1 < len(shots[0].perplexity) <= MOST_NAMED:
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5), fontsize=8.5)
    return figure


_DASHES = ("-", "--", ":", "-.")


def pairs(run: Run) -> Figure | None:
    """The first pairs of views: an image a column."""
    snapshot = run.before or run.after
    if snapshot is None or not snapshot.views.shape[1]:
        return None
    return _sheet(snapshot.views, ["view 1", "view 2"], "Augmented views: an image a column", 0.11)


def made(run: Run) -> Figure | None:
    """What the framework makes of a view: masked, reconstructed and so on."""
    snapshot = run.after or run.before
    if snapshot is None or not snapshot.pictures.size:
        return None
    return _sheet(snapshot.pictures, snapshot.picture_names.tolist(), _moment(run, snapshot), 0.26)


def _sheet(rows: NDArray[np.uint8], names: list[str], title: str, left_margin: float) -> Figure:
    """Pictures (R, P, H, W, 3) a row each, with the rows' names at the left in a share of the width."""
    count, height, width = rows.shape[1:4]
    gap = max(1, width // 16)
    share = 1 - left_margin
    figure = Figure(figsize=(WIDTH, WIDTH * share / 0.92 / count * len(rows) * height / width + 0.35), facecolor="none")
    axes = figure.add_axes((left_margin, 0.0, share, 1 - 0.35 / figure.get_figheight()), facecolor="none")
    # Nothing between the pictures: the page shows through, dark or light.
    sheet = np.zeros((len(rows) * (height + gap) - gap, count * (width + gap) - gap, 4), np.uint8)
    for row, column in np.ndindex(rows.shape[:2]):
        top, left = row * (height + gap), column * (width + gap)
        sheet[top : top + height, left : left + width, :3] = rows[row, column]
        sheet[top : top + height, left : left + width, 3] = 255
    axes.imshow(sheet, interpolation="nearest")
    axes.set_title(title, pad=5, color=ON_ANY, fontweight="bold")
    axes.set_yticks([row * (height + gap) + height / 2 for row in range(len(rows))], names, color=ON_ANY, fontsize=9)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    return figure


def agreement(run: Run) -> Figure | None:
    """Correlation, between every two heads, of their similarities of the same negatives."""
    shots = [shot for shot in _shots(run) if len(shot.random_similarity) > 1]
    if not shots:
        return None
    heads = len(shots[0].random_similarity)
    figure = Figure(figsize=(WIDTH, 1.1 + WIDTH / (2 * max(len(shots), 2)) * 1.7), layout="constrained")
    for axes, shot in zip(figure.subplots(1, len(shots), squeeze=False)[0], shots, strict=True):
        matrix = shot.agreement
        axes.imshow(matrix, cmap="cividis", vmin=0, vmax=1)
        for (row, column), value in np.ndenumerate(matrix) if heads <= MOST_NAMED else ():
            colour = "black" if value > 0.6 else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=9)
        axes.set_title(_moment(run, shot))
        axes.set_xticks(range(heads), [str(head + 1) for head in range(heads)])
        axes.set_yticks(range(heads), [str(head + 1) for head in range(heads)])
        axes.set_xlabel("head")
        axes.tick_params(length=0)
        axes.grid(visible=False)
    return figure


def embedding(run: Run) -> Figure | None:
    """Held-out images on the first two principal axes of the encoder's features, before and after training."""
    shots = [shot for shot in _shots(run) if len(shot.embedding)]
    if not shots:
        return None
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    for axes, shot in zip(figure.subplots(1, len(shots), squeeze=False)[0], shots, strict=True):
        _dots(axes, shot, shot.embedding)
        axes.set_title(_moment(run, shot))
        axes.set_xlabel(f"first axis, {shot.embedding_variance[0]:.0%} of variance", fontsize=9)
        axes.set_ylabel(f"second axis, {shot.embedding_variance[1]:.0%}", fontsize=9)
    _class_legend(figure)
    return figure


def neighbourhoods(run: Run) -> Figure | None:
    """The same images by t-SNE or UMAP, where one of them was installed."""
    shots = [shot for shot in _shots(run) if len(shot.map)]
    if not shots:
        return None
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    axes = figure.subplots()
    _dots(axes, shots[-1], shots[-1].map)
    axes.set_title(f"{shots[-1].map_name}, {_moment(run, shots[-1]).lower()}")
    _class_legend(figure)
    return figure


def _dots(axes: Axes, shot: Snapshot, places: NDArray[np.float32]) -> None:
    for label, name in enumerate(shot.classes.tolist()):
        points = places[shot.labels == label]
        axes.scatter(
            points[:, 0], points[:, 1], s=6, color=CYCLE[label % len(CYCLE)], alpha=0.7, linewidths=0, label=shown(name)
        )
    axes.set_xticks([])
    axes.set_yticks([])


def _class_legend(figure: Figure) -> None:
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    longest = max(map(len, labels), default=1)
    columns = max(1, min(5, 52 // (longest + 5)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8.5, markerscale=2)


_BARS = 24
"""Classes of which each has a bar; of more the best and the worst are drawn."""


def classes(run: Run) -> Figure | None:
    """kNN accuracy of every class, the best first; of many the best and the worst."""
    kept = run.neighbours
    ranked = ranked_classes(kept) if kept is not None else []
    if not ranked:
        return None
    half = _BARS // 2
    cut = len(ranked) > _BARS
    drawn = [*ranked[:half], *ranked[-half:]] if cut else ranked
    figure = Figure(figsize=(WIDTH, 0.9 + 0.2 * (len(drawn) + cut)), layout="constrained")
    axes = figure.subplots()
    places = [place + (cut and place >= half) for place in range(len(drawn))]
    axes.barh(places, [accuracy for _, accuracy in drawn], color=BLUE, height=0.72)
    for place, (_, accuracy) in zip(places, drawn, strict=True):
        inside = accuracy > 88
        axes.annotate(
            f"{accuracy:.0f}",
            (accuracy, place),
            xytext=(-4 if inside else 4, 0),
            textcoords="offset points",
            ha="right" if inside else "left",
            va="center",
            color="white" if inside else "#444444",
            fontsize=8,
        )
    axes.set_yticks(places, [_short(name) for name, _ in drawn], fontsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(drawn) + cut - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("kNN accuracy (%)")
    axes.set_title(f"The {half} best and worst of {len(ranked):,} classes" if cut else "Accuracy of every class")
    if cut:
        axes.text(0, half, " ⋮", va="center", fontsize=9, color=GREY)
    return figure


def ranked_classes(kept: Neighbours) -> list[tuple[str, float]]:
    """Name and accuracy in percent of the classes that were asked for, the best first."""
    accuracies = [
        (str(name), 100 * int(right) / int(asked))
        for name, right, asked in zip(kept.classes, kept.right, kept.asked, strict=True)
        if asked
    ]
    return sorted(accuracies, key=lambda of: -of[1])


def nearest(run: Run) -> Figure | None:
    """Held-out images and their nearest training images; whether the class is the same is written and drawn."""
    kept = run.neighbours
    if kept is None or not kept.images.size:
        return None
    rows, columns = kept.images.shape[:2]
    figure = Figure(figsize=(WIDTH, 0.35 + 0.8 * rows), facecolor="none", layout="constrained")
    grid: Any = figure.subplots(rows, columns, squeeze=False)
    for row, column in np.ndindex(rows, columns):
        axes = grid[row, column]
        axes.imshow(kept.images[row, column], interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(visible=False)
        same = kept.labels[row, column] == kept.labels[row, 0]
        colour, dashes = (ON_ANY, "-") if column == 0 else (SAME, "-") if same else (OTHER, (0, (2, 1.5)))
        for spine in axes.spines.values():
            spine.set(visible=True, color=colour, linestyle=dashes, linewidth=1.8)
        name = _short(str(kept.classes[kept.labels[row, column]]), 9)
        mark = "" if column == 0 else "✓ " if same else "✗ "
        axes.set_xlabel(mark + name, fontsize=6.8, color=colour, labelpad=2, fontweight="bold" if column == 0 else None)
    grid[0, 0].set_title("held out", fontsize=8, color=ON_ANY, loc="center")
    if columns > 1:
        grid[0, 1].set_title("nearest training images →", fontsize=8, color=ON_ANY)
    return figure


def _short(name: str, most: int = 22) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"

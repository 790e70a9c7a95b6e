"""Pictures of single moments of a run: pairs, heads, the embedding."""

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..runs.read import Run
from ..runs.snapshot import Snapshot
from .style import BLUE, CYCLE, GREY, RED
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
    if not shots[0].constant_tau:
        quantities["tau"] = "temperature τ"
    figure = Figure(figsize=(7.2, 2.2 * len(shots) + 0.6), layout="constrained")
    grid = figure.subplots(len(shots), len(quantities), sharex="col", squeeze=False)
    for column, (quantity, label) in enumerate(quantities.items()):
        bins = _bins(shots, quantity)
        for row, shot in enumerate(shots):
            axes = grid[row, column]
            _histogram(axes, shot, quantity, bins)
            axes.set_title(_moment(run, shot) if column == 0 else "")
            axes.set_ylabel("share of pairs" if column == 0 else "")
        grid[-1, column].set_xlabel(label)
        grid[-1, column].xaxis.set_major_locator(MaxNLocator(5))
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3, fontsize=9)
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


def pairs(run: Run) -> Figure | None:
    """The first pairs of views: an image a column."""
    snapshot = run.before or run.after
    if snapshot is None or not snapshot.views.shape[1]:
        return None
    return _sheet(snapshot.views, ["view 1", "view 2"], "Augmented views: an image a column", 0.08)


def made(run: Run) -> Figure | None:
    """What the framework makes of a view: masked, reconstructed and so on."""
    snapshot = run.after or run.before
    if snapshot is None or not snapshot.pictures.size:
        return None
    return _sheet(snapshot.pictures, snapshot.picture_names.tolist(), _moment(run, snapshot), 0.2)


def _sheet(rows: NDArray[np.uint8], names: list[str], title: str, left_margin: float) -> Figure:
    """Pictures (R, P, H, W, 3) a row each, with the rows' names at the left in a share of the width."""
    count, height, width = rows.shape[1:4]
    gap = max(1, width // 16)
    share = 1 - left_margin
    figure = Figure(figsize=(7.2, 7.2 * share / 0.92 / count * len(rows) * height / width + 0.35))
    axes = figure.add_axes((left_margin, 0.0, share, 1 - 0.35 / figure.get_figheight()))
    sheet = np.full((len(rows) * (height + gap) - gap, count * (width + gap) - gap, 3), 255, np.uint8)
    for row, column in np.ndindex(rows.shape[:2]):
        top, left = row * (height + gap), column * (width + gap)
        sheet[top : top + height, left : left + width] = rows[row, column]
    axes.imshow(sheet, interpolation="nearest")
    axes.set_title(title, pad=5)
    axes.set_yticks([row * (height + gap) + height / 2 for row in range(len(rows))], names)
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
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    for axes, shot in zip(figure.subplots(1, len(shots), squeeze=False)[0], shots, strict=True):
        matrix = head_agreement(shot)
        axes.imshow(matrix, cmap="cividis", vmin=0, vmax=1)
        for (row, column), value in np.ndenumerate(matrix):
            colour = "black" if value > 0.6 else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=9)
        axes.set_title(_moment(run, shot))
        axes.set_xticks(range(heads), [f"head {head + 1}" for head in range(heads)])
        axes.set_yticks(range(heads), [f"head {head + 1}" for head in range(heads)])
        axes.tick_params(length=0)
        axes.grid(visible=False)
    return figure


def head_agreement(shot: Snapshot) -> NDArray[np.float64]:
    """(C, C) correlation of the heads' similarities; 0 for a head that finds everything equally similar."""
    similarity = shot.random_similarity.astype(np.float64)
    centred = similarity - similarity.mean(1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 0)
    return unit @ unit.T


def embedding(run: Run) -> Figure | None:
    """Held-out images on the first two principal axes of the encoder's features, before and after training."""
    shots = [shot for shot in _shots(run) if len(shot.embedding)]
    if not shots:
        return None
    figure = Figure(figsize=(7.2, 3.9), layout="constrained")
    for axes, shot in zip(figure.subplots(1, len(shots), squeeze=False)[0], shots, strict=True):
        for label, name in enumerate(shot.classes.tolist()):
            points = shot.embedding[shot.labels == label]
            axes.scatter(*points.T, s=7, color=CYCLE[label % len(CYCLE)], alpha=0.7, linewidths=0, label=shown(name))
        axes.set_title(_moment(run, shot))
        axes.set_xlabel(f"first axis, {shot.embedding_variance[0]:.0%} of the variance")
        axes.set_ylabel(f"second axis, {shot.embedding_variance[1]:.0%}")
        axes.set_xticks([])
        axes.set_yticks([])
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8.5, markerscale=2)
    return figure

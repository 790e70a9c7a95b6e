"""Plots of one machine's results."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from amcl_fast.runs.files import write_file

from .. import results
from ..cases import PRODUCTS
from ..peers import PEERS

_OURS, _OTHER, _FLOOR = "#1b6ca8", "#c1440e", "#555555"


def draw(document: dict[str, Any], folder: Path) -> list[Path]:
    """Draw every plot that the document has data for, as PNG files in `folder`; returns their paths.

    Raises:
        ImportError: no matplotlib.
    """
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    name = results.slug(document["machine"])
    paths = []
    for title, section, plot in _PLOTS:
        if rows := document["sections"].get(section, {}).get("rows"):
            figure = Figure(figsize=(8, 4.5), layout="constrained")
            plot(figure.add_subplot(), rows)
            paths.append(folder / f"{name}-{title}.png")
            write_file(paths[-1], partial(figure.savefig, format="png", dpi=110, metadata={"Software": None}))
    return paths


def _speed_up(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Bars of each case, one a peer, on a logarithmic axis."""
    drawn = [peer for peer in PEERS.values() if peer.drawn]
    rows = [row for row in rows if any(peer.name in row["ratios"] for peer in drawn)][::-1]
    seen = set()
    for place, row in enumerate(rows):
        peers = [peer for peer in drawn if peer.name in row["ratios"]]
        height = 0.8 / len(peers)
        for number, peer in enumerate(peers):
            y = place + 0.4 - height * (number + 0.5)
            label = None if peer.name in seen else peer.name
            axes.barh(y, row["ratios"][peer.name] - 1, height, left=1, color=peer.colour, label=label)
            seen.add(peer.name)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    low, high = axes.get_xlim()
    ticks = [ratio for ratio in (0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50, 100) if low <= ratio <= high]
    axes.set_xticks(ticks, [f"{ratio:g}×" for ratio in ticks])
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(rows)), [row["case"] for row in rows], fontsize=8)
    axes.set_xlabel("speed-up, forward and backward")
    axes.legend(fontsize=8)


def _against_n(axes: Any, rows: list[dict[str, Any]], key: str, label: str, unit: float) -> None:
    row = next(row for row in rows if row["axis"] == "N")
    colours = {"ours": _OURS, "dense": PEERS["dense"].colour, PRODUCTS: _FLOOR}
    for name, colour in colours.items():
        points = [(n, m / unit) for n, m in zip(row["values"], row[name][key], strict=True) if m]
        if points:
            style = "--" if name == PRODUCTS else "o-"
            called = "bare products (floor)" if name == PRODUCTS else name
            axes.plot(*zip(*points, strict=True), style, color=colour, label=called)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(row["values"], [f"{n:,}" for n in row["values"]])
    axes.set_xlabel("N")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")


def _time(axes: Any, rows: list[dict[str, Any]]) -> None:
    _against_n(axes, rows, "milliseconds", "milliseconds, forward and backward", 1)


def _memory(axes: Any, rows: list[dict[str, Any]]) -> None:
    _against_n(axes, rows, "extra_bytes", "MiB beside operands and gradients", 2**20)


def _pipeline(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Processor time of an image, a pair of bars for each size and set of augmentations."""
    rows = [row for row in rows if "processor_ms" in row and "storage" not in row]
    keys = list(dict.fromkeys((row["size"], row["letters"]) for row in rows))
    for number, library in enumerate(("dali", "torchvision")):
        points = [(keys.index((row["size"], row["letters"])), row) for row in rows if row["library"] == library]
        low, median, high = zip(*(row["processor_ms"] for _, row in points), strict=True) if points else ((), (), ())
        spread = [[m - l for m, l in zip(median, low, strict=True)], [h - m for m, h in zip(median, high, strict=True)]]
        colour = (_OURS, _OTHER)[number]
        places = [place + 0.4 * number - 0.2 for place, _ in points]
        axes.bar(places, median, 0.4, yerr=spread, color=colour, label=library)
    axes.set_yscale("log")
    axes.set_xticks(range(len(keys)), [f"{size} px\n{letters or 'resize'}" for size, letters in keys], fontsize=8)
    axes.set_ylabel("processor ms an image (two views)")
    axes.legend()


def _steps(axes: Any, rows: list[dict[str, Any]]) -> None:
    """A stacked bar of milliseconds for each recipe."""
    rows = rows[::-1]
    left = [0.0] * len(rows)
    for phase in rows[0]["milliseconds"]:
        widths = [row["milliseconds"][phase] for row in rows]
        axes.barh(range(len(rows)), widths, left=left, label=phase)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(rows)), [row["recipe"] for row in rows], fontsize=8)
    axes.set_xlabel("ms a step")
    axes.legend(fontsize=8)


_PLOTS: tuple[tuple[str, str, Callable[[Any, list[dict[str, Any]]], None]], ...] = (
    ("speed-up", "operators", _speed_up),
    ("time", "scaling", _time),
    ("memory", "scaling", _memory),
    ("pipeline", "pipeline", _pipeline),
    ("steps", "training", _steps),
)

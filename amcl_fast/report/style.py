"""How all figures look.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; lines differ in dashes, too.
"""

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, RED, GREY = "#0072B2", "#D55E00", "#6E6E6E"
CYCLE = (BLUE, RED, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442", "#7A4B94", "#8C6D46")
"""For heads, classes and runs; ten at most are drawn in one picture."""

STYLE: Any = {
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
    "text.parse_math": False,  # a folder may be called anything
}


def curve_axes(title: str, y_label: str) -> tuple[Figure, Axes]:
    """A figure for curves over optimiser steps."""
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel(y_label)
    return figure, axes


def label(name: str) -> str:
    """A name as legends show it: they leave out those that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def png(figure: Figure) -> bytes:
    """The figure, of which nothing more is drawn, as PNG."""
    engine = figure.get_layout_engine()
    if engine is not None:
        # Laid out here: `savefig` draws it all once more for that, to the same picture.
        FigureCanvasAgg(figure)
        figure.set_dpi(STYLE["savefig.dpi"])
        engine.execute(figure)
        figure.set_layout_engine(None)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()

"""How all figures look.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart, with a darker yellow; lines differ in
dashes, too. A figure is as wide as a phone can show it. On a dark page charts are inverted (`html`), so they are drawn
for a white one; what shows photographs is not, and has no ground of its own.
"""

import io
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..runs.read import Run

BLUE, RED, GREY = "#0072B2", "#D55E00", "#6E6E6E"
CYCLE = (BLUE, RED, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#B3A300", "#7A4B94", "#8C6D46")
"""For heads, classes and runs; ten at most are drawn in one picture."""

ON_ANY = "#7A7A7A"
"""Of text that is read on white and on black alike."""

SAME, OTHER = "#3A8FC7", "#D9661F"
"""Of frames and words on either: the right class and a wrong one, which differ in their marks, too."""

WIDTH = 4.8
"""Inches: at 328 pixels, a phone's, ten points are nine pixels."""

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
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.2,
    "lines.linewidth": 1.8,
    "savefig.dpi": 200,
    "text.parse_math": False,  # a folder may be called anything
}


def curve_axes(title: str, y_label: str, run: Run | None = None) -> tuple[Figure, Axes]:
    """A figure for curves over a run's epochs; its x label is left to the caller where there is no run."""
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    if run is not None:
        axes.set_xlabel(run.x_label)
    axes.set_ylabel(y_label)
    return figure, axes


WIDE = 20
"""Largest over smallest value from which on an axis of positive values is logarithmic."""


def logarithmic(axes: Axes, which: Literal["x", "y"]) -> None:
    """A logarithmic axis with numbers: the scale's own writes formulas, which are not set here."""
    axes.set(**{f"{which}scale": "log"})
    getattr(axes, f"{which}axis").set_major_formatter("{x:g}")


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

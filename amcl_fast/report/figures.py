"""The figures of a report, as PNG bytes."""

import matplotlib as mpl

from ..runs.read import Run
from . import curves, pictures
from .style import STYLE, png


def draw_figures(run: Run) -> dict[str, bytes]:
    """File name to PNG of every figure for which the run holds the numbers, in the order of the page."""
    figures = {
        "knn.png": curves.knn,
        "embedding.png": pictures.embedding,
        "loss.png": curves.loss,
        "losses.png": curves.parts,
        "temperature.png": curves.temperature,
        "heads.png": curves.head_temperatures,
        "histograms.png": pictures.histograms,
        "agreement.png": pictures.agreement,
        "pairs.png": pictures.pairs,
        "made.png": pictures.made,
    }
    with mpl.rc_context(STYLE):
        drawn = {name: draw(run) for name, draw in figures.items()}
        return {name: png(figure) for name, figure in drawn.items() if figure is not None}

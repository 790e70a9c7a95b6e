"""The figures of a report, as PNG bytes."""

import matplotlib as mpl

from ..progress import Loop
from ..runs.read import Run
from . import curves, pictures
from .style import STYLE, png


def draw_figures(run: Run) -> dict[str, bytes]:
    """File name to PNG of every figure for which the run holds the numbers, in the order of the page."""
    figures = {
        "knn.png": curves.knn,
        "classes.png": pictures.classes,
        "nearest.png": pictures.nearest,
        "embedding.png": pictures.embedding,
        "neighbourhoods.png": pictures.neighbourhoods,
        "loss.png": curves.loss,
        "losses.png": curves.parts,
        "learning_rate.png": curves.learning_rate,
        "gradient_norm.png": curves.gradient_norm,
        "throughput.png": curves.throughput,
        "temperature.png": curves.temperature,
        "heads.png": curves.head_temperatures,
        "histograms.png": pictures.histograms,
        "anchors.png": pictures.anchors,
        "agreement.png": pictures.agreement,
        "pairs.png": pictures.pairs,
        "made.png": pictures.made,
    }
    drawn = {}
    with mpl.rc_context(STYLE):
        for name, draw in Loop(figures.items(), "drawing figures", lines=False):
            if (figure := draw(run)) is not None:
                drawn[name] = png(figure)
    return drawn

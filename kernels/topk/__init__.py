"""Contrast over the κ hardest candidates of each anchor, once `select.hardest` has found them (Eq. 2.1, 2.4).

With κ ≪ B everything but the similarities is needed for κ columns a row only, so it is gathered:

- `_topk_scores`: r of the chosen pairs;
- `_topk_rows`: the value of each row and its slopes ∂row/∂s and ∂row/∂r, which are all that the backward pass keeps;
- `_topk_sums`: every gradient is a sum of gathered rows weighted by those slopes.

Candidates collect from the anchors that chose them by a list sorted by column, not by atomics: the same bits every
run. Where anchors and candidates are one table, a row collects its pairs of both kinds and is written once.
"""

from .backward import topk_backward
from .forward import topk_forward

__all__ = ["topk_backward", "topk_forward"]

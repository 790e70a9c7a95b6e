"""Contrast over all candidates: log Σ exp(s/τ − β·Ω(τ)), or the released mean (Eq. 2.4; NT-Xent and DCL).

Tiles of s and r are formed, used and forgotten, as in flash attention. Forward: a running log-sum-exp per anchor.
Backward: tiles are formed again, and each gradient has one owner, so none needs atomics. Where anchors and candidates
are one table, s and r are symmetric and a pair counts for both of its rows with the slopes of one tile: row i collects
Σ_j (w_ij + w_ji)·slope_ij·z_j. Else there is one pass for the rows of the anchors and one for those of the candidates.
Few anchors against many candidates are split over the candidates, and the parts are added in a fixed order.

1/τ amplifies a difference of s between the passes, so all of them read the products at one depth and precision, and
the kernels are compiled without contraction of products and sums: the same source gives the same bits of a value. What
is fused is written as such, tl.fma.
"""

from .forward import dense_forward
from .gradient import dense_backward

__all__ = ["dense_backward", "dense_forward"]

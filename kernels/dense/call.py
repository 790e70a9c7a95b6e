"""What both passes share: skipped pairs, and how a call is told to the kernels and split among programs."""

import triton
import triton.language as tl
from torch import Tensor

from .. import tile, tuning
from ..launch import Rows, blocks, power_of_two


@triton.jit
def without(skip, x, anchor, anchors, column, fill):
    """`x`, `fill` where the anchor skips the column; index tiles that broadcast."""
    for i in tl.static_range(skip.each):
        skipped = tl.load(skip.base + anchor.to(tl.int64) * skip.each + i, anchor < anchors, other=-1)
        x = tl.where(skipped.to(tl.int32) == column, fill, x)
    return x


@triton.jit
def temperatures_of(temperatures, head, row, rows):
    """τ of each row of a head; 1 past the end."""
    return tl.load(temperatures + head.to(tl.int64) * rows + row, row < rows, other=1.0).to(tl.float32)


def operands(
    anchors: Tensor, candidates: Tensor, phi_anchors: Tensor | None, phi_candidates: Tensor | None
) -> tuple[Rows, Rows, Rows, Rows]:
    """The tables as kernel arguments, those of φ replaced by the others where the temperature is constant."""
    return (
        tile.rows_of(anchors),
        tile.rows_of(candidates),
        tile.rows_of(anchors if phi_anchors is None else phi_anchors),
        tile.rows_of(candidates if phi_candidates is None else phi_candidates),
    )


def settings_of(mean: bool, count: int, tau_min: float, tau_max: float, beta: float, dim: int) -> tuple[float, ...]:
    """tau_min, tau_span, beta, log_weight and share, as the kernels take them."""
    return tau_min, tau_max - tau_min, beta, 1.0 if mean else 0.5 * dim, 1.0 / count if mean else 1.0


def split_of(programs: int, columns: int, tile: int) -> tuple[int, int]:
    """(columns of one part, parts): enough parts for a grid of 256, none shorter than four tiles."""
    # A process whose own batch is empty has no programs or no columns, and still takes part.
    parts = max(1, min(blocks(256, max(1, programs)), columns // (4 * tile)))
    stretch = max(1, blocks(blocks(columns, parts), tile)) * tile
    return stretch, max(1, blocks(columns, stretch))


def many_or_few(count: int) -> str:
    """Whether blocks of that many rows alone fill a GPU."""
    return "many" if count >= 2**14 else "few"


def key_of(x: Tensor, width: int, adaptive: bool, kind: str, per_row: bool = False) -> str:
    """Of the tuning tables of both passes."""
    form = "per anchor" if per_row else tuning.form(adaptive)
    return tuning.key(x, f"d={max(64, power_of_two(width))}", form, kind)

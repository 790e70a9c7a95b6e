"""Launch parameters of kernels that gather whole rows."""

from torch import Tensor

from .. import tuning
from ..launch import power_of_two


def gather_tiling(table: str, x: Tensor, width: int, kind: str) -> dict[str, int]:
    """8 gathered rows in flight, fewer of wide tables: 32 elements of each a thread."""
    default = {"BLOCK": max(1, min(8, 8192 // width)), "num_warps": max(1, min(8, width // 128))}
    return tuning.chosen(table, tuning.key(x, f"d={width}", kind), default, x)


def padded(x: Tensor) -> int:
    """Lanes that hold a row of `x`."""
    return max(16, power_of_two(x.shape[-1]))

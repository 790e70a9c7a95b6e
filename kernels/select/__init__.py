"""The κ candidates of largest similarity, exactly, for every anchor (ties: lowest column).

1. `_select_maxima`: candidates are dealt into G ≥ 4κ groups; of each the largest similarity. The κ-th largest of the G
   maxima is a lower bound of the κ-th largest similarity, since κ groups hold a value at least as large.
2. `_select_bounds`: that bound, by bisection on the bits of the maxima until it is exact or few more than κ of them
   reach it.
3. `_select_bits`: forms the similarities again; two bits of each: does it reach the bound, is it above.
4. `_select_lists`: the columns above the bound, 1.15·κ a row on average, then as many at the bound as are missing.
5. `_select_values`: forms what the maxima do not tell, by the same products: a group's maximum is the value of its
   column above the bound if it has only one.
6. `_select_pick`: the κ best of the list, by bisection.

Similarities exist only as tiles, nothing is counted by atomics, and every list has a fixed order, so the result is a
function of the inputs alone.

**Equal similarities.** Let b be the bound, v the κ-th largest similarity, b ≤ v. If v = b, fewer than κ columns are
above b: all of them are taken, and of those at b, whose value is known, the lowest. If v > b, at least κ are above b
and none at b is taken. So what is at the bound need never be formed again or counted, however many there are: a row
of equal similarities has b = v, nothing above, and its κ columns among the first G + S. For that b must be exact
where many maxima are equal, and it is: bisection ends early only where few reach it.

**Crowded rows** have more columns above the bound than their list holds. Those lie in fewer than κ·17/16 of the G
groups, or the bisection had gone on: in about a quarter of the candidates at most, and ties at the bound are not
among them. `_select_crowded` forms them again, one row a program, in the order of the columns, keeps what beats the
κ-th best so far, and halves the list when it is full: work linear in their number. Which group a column goes into
turns with every G columns, so that no period of the candidates, as of the two views of an image, crowds a group.

**NaN** is above everything, one NaN equal to another, as a stable sort has it; so is ∞ but for NaN, and both have the
bit of what is above any bound. A bound of −∞ means that fewer than κ groups have anything to show; then −∞ itself,
which skipped columns have too, is at the bound, and what is taken from there is checked against them.
"""

import torch
from torch import Tensor

from .. import tuning
from ..launch import blocks, power_of_two
from ..tile import rows_of, similarity_tiling, skip_of
from .groups import MEMBERS
from .lists import _select_crowded, _select_lists
from .passes import _select_bits, _select_maxima, _select_values
from .ranks import _select_bounds, _select_pick

# Bytes of maxima, bits and lists at once; more anchors are done in turns.
WORKSPACE = 128 * 2**20


def hardest(anchors: Tensor, candidates: Tensor, skip: Tensor | None, top_k: int) -> tuple[Tensor, Tensor]:
    """The `top_k` candidates of largest inner product with each anchor.

    Args:
        anchors: (C, A, d), any strides.
        candidates: (C, B, d), any strides.
        skip: (A, S) int64, distinct columns that are not candidates of the anchor, or None.
        top_k: 1 ≤ κ ≤ B − S.

    Returns:
        similarities (C, A, κ) float32 and chosen (C, A, κ) int32, their columns, in an order that is a function of the
        inputs.
    """
    heads, count, width = anchors.shape
    device = anchors.device
    tiling = similarity_tiling(anchors, width)
    m, n = int(tiling["M"]), int(tiling["N"])
    table = rows_of(candidates)
    similarities = torch.empty(heads, count, top_k, device=device)
    chosen = torch.empty(heads, count, top_k, dtype=torch.int32, device=device)
    if not similarities.numel():
        return similarities, chosen
    groups = _groups(blocks(count, m) * heads, table.rows, top_k, n)
    words = blocks(blocks(table.rows, groups), MEMBERS.value)
    # Twice what is expected, and so much more than κ that a crowded row gets on.
    capacity = max(64, power_of_two(2 * top_k))
    # int32 or as large: maxima, words, keys, columns, counts (2 of 4), bounds. By fours: all begin at 16 bytes.
    sizes = (groups, words * groups, capacity, capacity, 4, 4)
    turns = blocks(4 * heads * count * sum(sizes), WORKSPACE)
    turn = blocks(blocks(count, turns), m) * m
    workspace = torch.empty(heads * min(turn, count) * sum(sizes), dtype=torch.int32, device=device)
    shift = (groups // n).bit_length() - 1
    # Four warps form 64 rows by the same instructions as 128 rows in the two passes, and half of what nobody asked for.
    few_anchors = min(m, 64) if tiling["num_warps"] == 4 else m
    few = {**tiling, "M": few_anchors}
    of_groups, of_lists, in_crowds = (
        _lanes(name, entries, anchors)
        for name, entries in (("bounds", groups), ("pick", capacity), ("crowded", capacity))
    )
    listing = _lanes("lists", groups, anchors)
    for start in range(0, count, turn):
        part = rows_of(anchors[:, start : start + turn])
        size = part.rows
        hidden = skip_of(None if skip is None else skip[start : start + turn], chosen)
        maxima, bits, keys, columns, counts, bounds = workspace[: heads * size * sum(sizes)].split(
            [heads * size * each for each in sizes]
        )
        maxima, keys, bounds = maxima.view(torch.uint32), keys.view(torch.uint32), bounds.view(torch.float32)

        grid = (blocks(size, m), groups // n, heads)
        _select_maxima[grid](part, table, hidden, maxima, shift, **tiling)
        _select_bounds[blocks(heads * size, of_groups["ROWS"]),](
            maxima, bounds, heads * size, groups, top_k, **of_groups
        )
        _select_bits[grid](part, table, hidden, bounds, bits, shift, **tiling)
        _select_lists[blocks(size, listing["ROWS"]), heads](
            maxima, bounds, bits, hidden, counts, keys, columns, size, table.rows, shift, top_k, capacity,
            N=n, **listing,
        )  # fmt: skip
        # A fifth of the list is expected to be unknown.
        tiles = blocks(size, few_anchors)
        parts = max(1, min(1024 // (tiles * heads), few_anchors * top_k // (4 * n)))
        _select_values[tiles, parts, heads](part, table, counts, keys, columns, capacity, **few)
        _select_crowded[size, heads](
            part, table, bits, counts, keys, columns, shift, top_k, capacity, N=n, DEPTH=64, **in_crowds,
        )  # fmt: skip
        _select_pick[blocks(size, of_lists["ROWS"]), heads](
            counts, keys, columns, similarities[:, start:], chosen[:, start:], size, count * top_k, top_k, capacity,
            **of_lists,
        )  # fmt: skip
    return similarities, chosen


def _lanes(kernel: str, count: int, x: Tensor) -> dict[str, int]:
    """Launch parameters of a kernel that looks at `count` entries of each row, a power of two."""
    # Entries that a warp holds at once, rows that a program has of short lists, registers that ptxas may use.
    each, together, registers = {
        "bounds": (1024, 2048, 168),
        "lists": (128, 256, 128),
        "crowded": (512, 1, 255),
        "pick": (512, 256, 168),
    }[kernel]
    warps = max(1, min(8, count // (512 if kernel == "pick" else 1024)))
    block = min(count, each * warps)
    default = {"BLOCK": block, "num_warps": warps, "maxnreg": registers}
    if kernel != "crowded":
        default["ROWS"] = max(1, together // block)
    found = tuning.chosen(f"select.{kernel}", f"{count} entries" if count <= 8192 else "more", default, x)
    return found if kernel == "lists" else {**found, "ONE": count <= found["BLOCK"]}


def _groups(tiles: int, columns: int, top_k: int, tile: int) -> int:
    """Number of groups: a power of two, at least 4κ, and enough to fill a GPU if there are few anchors."""
    # Eight tiles at least: columns turn among them.
    groups = max(8 * tile, power_of_two(4 * top_k))
    while groups < 8192 and tiles * (groups // tile) < 256:
        groups *= 2
    return min(groups, max(tile, power_of_two(columns)))

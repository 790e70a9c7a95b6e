"""What MoCo v3 does to a Vision Transformer (arXiv 2104.02057; facebookresearch/moco-v3, vits.py)."""

import math
from typing import Any

import torch
from torch import Tensor, nn


def fix_positions(model: Any, name: str) -> None:
    """Replace learned position embeddings by `sine_cosine_positions`, which are not trained.

    Raises:
        ValueError: the model has no table of positions, or its width is no multiple of 4.
    """
    table, grid = getattr(model, "pos_embed", None), getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if not isinstance(table, nn.Parameter) or grid is None or table.ndim != 3 or table.shape[2] % 4:
        raise ValueError(
            f"backbone.positions must be learned with {name}: fixed ones need a table of positions (pos_embed) whose "
            "width is a multiple of 4"
        )
    rows, columns = grid
    positions = sine_cosine_positions(rows, columns, table.shape[2])
    with torch.no_grad():
        table.zero_()  # of class and register tokens, which stand before those of the patches
        table[0, -len(positions) :] = positions
    table.requires_grad_(False)


def sine_cosine_positions(rows: int, columns: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Fixed position embeddings (rows · columns, D) of a grid of patches, row by row, float64.

    With ω_i = 10000^(-4i/D), i < D/4, a patch in row y and column x has sin(y ω), cos(y ω), sin(x ω), cos(x ω). Those
    of MAE are the same with x before y.
    """
    omega = 1 / 10000 ** (torch.arange(dim // 4, dtype=torch.float64, device=device) / (dim // 4))
    y, x = (torch.outer(torch.arange(n, dtype=torch.float64, device=device), omega) for n in (rows, columns))
    row, column = torch.cat([y.sin(), y.cos()], 1), torch.cat([x.sin(), x.cos()], 1)
    return torch.cat([row.repeat_interleave(columns, 0), column.repeat(rows, 1)], 1)


def freeze_patch_projection(model: Any, name: str, *, initialise: bool) -> None:
    """Leave the convolution that reads the patches as it is at the start.

    Args:
        model: of timm.
        name: of the model, for errors.
        initialise: weights uniform in ±√(6/(3 p² + D)) for patches of p pixels and width D, biases 0; else they stay.

    Raises:
        ValueError: the model has no such convolution.
    """
    projection = getattr(getattr(model, "patch_embed", None), "proj", None)
    if not isinstance(projection, nn.Conv2d):
        raise ValueError(
            f"backbone.freeze_patch_projection must be false with {name}, which has no convolution of patches "
            "(patch_embed.proj)"
        )
    if initialise:
        bound = math.sqrt(6 / (projection.weight[0].numel() + projection.out_channels))
        nn.init.uniform_(projection.weight, -bound, bound)
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)
    projection.requires_grad_(False)

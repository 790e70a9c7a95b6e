"""The decoder of masked images (MAE, arXiv 2111.06377): tokens of visible patches to a prediction for every patch."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..extras import extras_named
from ..setting_types import WIDEST, check_fields, fits_memory, whole
from .heads import MOST_LAYERS
from .vit import sine_cosine_positions

_LEVEL_DIM = 128


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder made of blocks of timm's Vision Transformer.

    Attributes:
        width: of its tokens, a multiple of 4 and of `heads`.
        depth: number of blocks, at most 100.
        heads: attention heads of each.

    Raises:
        TypeError: a setting of another type.
    """

    width: int = 512
    depth: int = 8
    heads: int = 16

    def __post_init__(self) -> None:
        check_fields(self, "decoder")


class PatchDecoder(nn.Module):
    """Pixels of all patches from the tokens of those that were visible, a learned token in the others' places.

    Positions are fixed, `sine_cosine_positions`. The noise level is told by `level`, a perceptron of its
    sine-cosine embedding, which is added to every token that the encoder gives.

    Args:
        dim: width D of the encoder's tokens.
        pixels: numbers of a patch, 3·h·w.
        config: size of the decoder.

    Raises:
        ValueError: a size that is none.
        ImportError: timm is missing.
    """

    def __init__(self, dim: int, pixels: int, config: DecoderConfig) -> None:
        super().__init__()
        with extras_named("a decoder"):
            from timm.models.vision_transformer import Block
        for name, most in (("width", WIDEST), ("depth", MOST_LAYERS), ("heads", WIDEST)):
            whole(f"decoder.{name}", getattr(config, name), 1, most)
        if config.width % math.lcm(4, config.heads):
            raise ValueError(
                f"decoder.width must be a multiple of 4 and of decoder.heads, {config.heads}, got {config.width}"
            )
        norm = partial(nn.LayerNorm, eps=1e-6)
        width, heads = config.width, config.heads
        self.level = nn.Sequential(nn.Linear(_LEVEL_DIM, dim), nn.ReLU(), nn.Linear(dim, dim))
        with fits_memory(**{"decoder.width": width, "decoder.depth": config.depth}):
            self.input = nn.Linear(dim, width)
            self.mask_token = nn.Parameter(torch.empty(1, 1, width))
            self.blocks = nn.Sequential(
                *(Block(width, heads, qkv_bias=True, norm_layer=norm) for _ in range(config.depth))  # type: ignore[arg-type]
            )
            self.norm = norm(width)
            self.output = nn.Linear(width, pixels)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, visible: Tensor, grid: tuple[int, int], level: Tensor) -> Tensor:
        """Predictions (n, L, 3·h·w) for all patches.

        Args:
            tokens: (n, prefix + v, D) of the encoder.
            visible: (n, v) places of the tokens after the prefix.
            grid: rows and columns of patches; L is their product.
            level: (n,) standard deviations of the noise.
        """
        weights = self.mask_token.dtype
        told = self.level(sines_and_cosines(level, _LEVEL_DIM).to(weights))
        x = self.input(tokens + told.unsqueeze(1)).to(weights)
        prefix, x = x.tensor_split([tokens.shape[1] - visible.shape[1]], dim=1)
        places = visible.unsqueeze(-1).expand_as(x)
        x = self.mask_token.expand(len(x), math.prod(grid), -1).scatter(1, places, x)
        x = torch.cat([prefix, x + sine_cosine_positions(*grid, x.shape[-1], x.device).to(weights)], dim=1)
        return self.output(self.norm(self.blocks(x)))[:, prefix.shape[1] :]


def sines_and_cosines(x: Tensor, dim: int) -> Tensor:
    """(k,) to (k, dim): sines, then cosines, of x·10000^(−i/(dim/2 − 1)) for i from 0 to dim/2 − 1."""
    frequencies = torch.arange(dim // 2, device=x.device, dtype=x.dtype) / (dim // 2 - 1)
    angles = x.unsqueeze(-1) * 10000.0**-frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)

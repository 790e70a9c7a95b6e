"""Images of which a Vision Transformer sees a part: random masks, patches, and the encoding of what is visible."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..extras import extras_named


class Masks(NamedTuple):
    """Which patches of every image are seen and which are not, places in the grid, row by row and ascending.

    Attributes:
        visible: (n, L − m) int64.
        masked: (n, m) int64.
    """

    visible: Tensor
    masked: Tensor


def masked_count(patches: int, ratio: float) -> int:
    """Patches of L that are masked, round(L · ratio).

    Raises:
        ValueError: all of them or none.
    """
    count = round(patches * ratio) if 0 < ratio < 1 else 0
    if not 0 < count < patches:
        raise ValueError(f"mask_ratio must mask some of the {patches} patches of an image and leave some, got {ratio}")
    return count


def random_masks(images: int, patches: int, ratio: float, device: torch.device) -> Masks:
    """Masks of n images of L patches, each its own, `masked_count` patches of every one.

    Drawn from torch's generator of the device. float32 whatever the default: so the same in every precision.
    """
    order = torch.rand(images, patches, device=device, dtype=torch.float32).argsort(1)
    visible, masked = order.tensor_split([patches - masked_count(patches, ratio)], dim=1)
    return Masks(visible.sort(1).values, masked.sort(1).values)


def taken(x: Tensor, places: Tensor) -> Tensor:
    """Rows (n, k, w) of x (n, L, w) at places (n, k)."""
    return x.gather(1, places.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def patches_of(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (n, 3, H, W) as patches (n, L, 3·h·w) of `size` (h, w), row by row; none of the rest."""
    return nn.functional.unfold(images, size, stride=size).mT


def images_of(patches: Tensor, size: tuple[int, int], pixels: tuple[int, int]) -> Tensor:
    """The inverse of `patches_of`: images (n, 3, H, W) of `pixels` (H, W), 0 beyond the grid."""
    return nn.functional.fold(patches.mT, pixels, size, stride=size)


def transformer_of(backbone: nn.Module, name: str) -> Any:
    """timm's model in a backbone: a VisionTransformer whose tokens are each of one patch.

    Args:
        backbone: of `build_backbone`.
        name: what it was built from.

    Raises:
        ValueError: another one.
        ImportError: timm is missing.
    """
    with extras_named("a Vision Transformer"):
        from timm.layers import PatchEmbed
        from timm.models.vision_transformer import VisionTransformer
    model = getattr(backbone, "model", None)
    if not isinstance(model, VisionTransformer) or type(model.patch_embed) is not PatchEmbed:
        raise ValueError(
            "backbone.name must be that of a VisionTransformer of timm, as timm/vit_base_patch16_224, whose patches "
            f"can be masked, got {name}"
        )
    if model.patch_embed.dynamic_img_pad or not isinstance(model.patch_drop, nn.Identity):
        raise ValueError(
            "backbone.arguments must leave out dynamic_img_pad and patch_drop_rate where patches are masked, got "
            f"{name} with one of them"
        )
    return model


def encode_visible(model: Any, images: Tensor, visible: Tensor) -> Tensor:
    """Tokens (n, prefix + v, D) of the visible patches, as `model.forward_features` gives those of all.

    The blocks see no others, so that their cost falls with the mask. `model.forward_head` pools them.

    Args:
        model: see `transformer_of`.
        images: (n, 3, H, W).
        visible: (n, v) places in the grid.
    """
    tokens = model._pos_embed(model.patch_embed(images))
    prefix, patches = tokens.tensor_split([model.num_prefix_tokens], dim=1)
    tokens = model.norm_pre(torch.cat([prefix, taken(patches, visible)], dim=1))
    if model.grad_checkpointing:
        from timm.models import checkpoint_seq

        tokens = checkpoint_seq(model.blocks, tokens)
    else:
        tokens = model.blocks(tokens)
    return model.norm(tokens)

"""Whether an encoder takes images of several sizes, as views of several sizes are."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .modes import floating_dtype, in_mode

ANY_SIZE = "dynamic_img_size"
"""Argument of those of timm's Vision Transformers that take images of other sizes than they are built for."""


def takes_any_size(name: str, size: int) -> bool:
    """Whether the constructor of timm's model `name` takes `ANY_SIZE`. Nothing is computed, and no memory is taken."""
    import timm

    arguments: dict[str, Any] = {"img_size": size, ANY_SIZE: True}
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    except Exception:  # whatever is wrong with the model is told where it is built
        return False
    return True


def check_sizes(backbone: nn.Module, sizes: Iterable[int]) -> None:
    """See that an encoder takes images of each size, by one blank image; its state and random generators stay.

    Raises:
        ValueError: it takes none of a size, or its features are of another width then.
    """
    weight = next(backbone.parameters(), None)
    device = None if weight is None else weight.device
    for size in sorted(set(sizes)):
        image = torch.zeros(1, 3, size, size, dtype=floating_dtype(backbone), device=device)
        with torch.no_grad(), torch.random.fork_rng(devices=[]), in_mode(backbone, training=False):
            try:
                shape = tuple(backbone(image).shape)
            except Exception as error:  # of any code of others
                raise ValueError(_refusal(size, " ".join(str(error).split())[:200] or type(error).__name__)) from error
        if shape != (1, backbone.feature_dim):
            raise ValueError(_refusal(size, f"its features are of shape {shape}, not (1, {backbone.feature_dim})"))


def _refusal(size: int, reason: str) -> str:
    return (
        f"model.backbone must take images of each size of data.views, got none of {size} × {size} px: "
        f"{reason.rstrip('.')}. ResNets do, and models of timm that take model.backbone.arguments {ANY_SIZE}: true, or "
        "any size without it"
    )

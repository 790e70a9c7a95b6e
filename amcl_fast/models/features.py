"""What an encoder gives for images, found by a forward pass: its makers' word for it is not always right."""

import torch
from torch import nn

from .modes import in_mode

INSIDE = (AssertionError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""Errors of models that do not fit their images or settings."""


def feature_dim(model: nn.Module, name: str, size: int, *, channels_last: bool = False) -> int:
    """Width of the features; neither running statistics nor random generators change.

    Args:
        model: images to features.
        name: of the model, for errors.
        size: side of the images, in pixels.
        channels_last: whether they lie so in memory, as in training.

    Raises:
        ValueError: it cannot take these images, or what it gives are no vectors (n, D).
    """
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = torch.zeros(2, 3, size, size, dtype=weight.dtype, device=weight.device).to(memory_format=layout)
    devices = [weight.device] if weight.is_cuda else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices), in_mode(model, training=False):
            features = model(images)
    except INSIDE as error:
        raise unfit(name, size, error) from error
    shape = tuple(getattr(features, "shape", ()))
    if len(shape) != 2 or shape[0] != 2 or not shape[1]:
        found = f"shape {('n', *shape[1:])}".replace("'", "") if shape[:1] == (2,) else type(features).__name__
        raise ValueError(f"backbone must give features (n, D), got {found} from {name}")
    return shape[1]


def unfit(name: str, size: int | None, error: Exception) -> ValueError:
    """An error of a model's inside as one that names model and size."""
    sized = "" if size is None else f" of {size} × {size} px (data.size)"
    return ValueError(f"{name} cannot take images{sized}: {in_a_line(error)}")


def in_a_line(error: Exception) -> str:
    """What an error says, or its kind where it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__

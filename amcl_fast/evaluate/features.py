"""The features that evaluations judge: of an encoder, or the pixels themselves."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..modes import floating_dtype, in_mode

Progress = Callable[[Iterable[Any], str], Iterable[Any]]
"""Wraps a loop, given what it is about, to show how far it is; as tqdm does."""


def silent(loop: Iterable[Any], title: str) -> Iterable[Any]:
    """Show nothing."""
    return loop


@torch.no_grad()
def encode(
    backbone: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Features of every image of a loader, computed in evaluation mode.

    Args:
        backbone: images (n, 3, H, W) to features (n, d); its training mode is restored afterwards, module by
            module. It gets the images in the type of its weights.
        loader: yields (images, labels (n,) int64).
        device: where the backbone stands.

    Returns:
        Features (N, d) float32 and labels (N,), both on the CPU.

    Raises:
        ValueError: the loader yields nothing.
    """
    dtype = floating_dtype(backbone)
    with in_mode(backbone, training=False):
        return _collect((backbone(images.to(device, dtype)), labels) for images, labels in loader)


def pixel_features(loader: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The images themselves, flattened, as features: the baseline that an encoder has to beat.

    Args:
        loader: yields (images (n, 3, H, W), labels (n,) int64).

    Returns:
        Features (N, 3 * H * W) float32 and labels (N,), both on the CPU.

    Raises:
        ValueError: the loader yields nothing.
    """
    return _collect((images.flatten(1), labels) for images, labels in loader)


def _collect(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    # The loader may reuse a batch's memory, which `.float()` alone would keep sharing.
    parts = [(features.to("cpu", torch.float32, copy=True), labels.cpu().clone()) for features, labels in batches]
    if not parts:
        raise ValueError("loader yields no batch: there is nothing to evaluate")
    features, labels = zip(*parts, strict=True)
    return torch.cat(features), torch.cat(labels)


def check_features(name: str, features: Tensor, labels_name: str, labels: Tensor, num_classes: int) -> None:
    """Refuse features and labels that no evaluation can use.

    Args:
        name: what the features are called in errors.
        features: (N, d) floating point.
        labels_name: what the labels are called in errors.
        labels: (N,) int64, 0 to num_classes - 1.
        num_classes: number of classes.

    Raises:
        TypeError: features are not floating point or labels not int64.
        ValueError: shapes that do not fit, no rows, labels out of range, features that are not finite.
    """
    if features.ndim != 2:
        raise ValueError(f"{name} must be (N, d), got {tuple(features.shape)}")
    if not features.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {features.dtype}")
    if labels.dtype != torch.int64:
        raise TypeError(f"{labels_name} must be int64, got {labels.dtype}")
    if not len(features):
        raise ValueError(f"{name} is empty: at least one row is needed")
    if labels.shape != features.shape[:1]:
        raise ValueError(
            f"{labels_name} must be ({len(features)},), one label a row of {name}, got {tuple(labels.shape)}"
        )
    lowest, highest = (int(value) for value in torch.aminmax(labels))
    if lowest < 0 or highest >= num_classes:
        raise ValueError(
            f"{labels_name} must lie in 0..{num_classes - 1} (num_classes={num_classes}), got {lowest}..{highest}"
        )
    if not torch.isfinite(features).all():
        raise ValueError(f"{name} must be finite, got NaN or infinite values")

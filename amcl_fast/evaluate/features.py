"""The features that evaluations judge: of an encoder, or the pixels themselves."""

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed import exchange, in_step
from ..models.modes import floating_dtype, in_mode
from ..ops import checks

Progress = Callable[[Iterable[Any], str], Iterable[Any]]
"""Wraps a loop, given what it is about, to show how far it is; as tqdm does."""

Extract = Callable[[Tensor], Tensor]
"""Images (n, 3, H, W) to features (n, d)."""

_CHECKED = 1 << 24
"""Values at a time of which it is asked whether they are finite."""


class NonFiniteFeaturesError(ValueError):
    """Features have values that are infinite or NaN."""


class NothingToEvaluateError(ValueError):
    """No image is left of which there could be features."""


def silent(loop: Iterable[Any], title: str) -> Iterable[Any]:
    """Show nothing."""
    return loop


def encode(
    backbone: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | str,
    *,
    dtype: torch.dtype = torch.float32,
    shared: bool = False,
) -> tuple[Tensor, Tensor]:
    """Features of every image of a loader, computed in evaluation mode.

    Args:
        backbone: images (n, 3, H, W) to features (n, d); its training mode is restored afterwards, module by
            module. It gets the images in the type of its weights.
        loader: yields (images, labels (n,) int64).
        device: where the backbone stands.
        dtype: of the features that are kept; float16 takes half the memory.
        shared: all processes of the group call this, each for its part of the images, which may be none. None waits
            for another longer than a few batches take, and an error in one is an error in all.

    Returns:
        Features (N, d) and labels (N,), both on the CPU.

    Raises:
        ValueError: the loader yields nothing; if shared, all of them; or a feature is beyond what `dtype` can hold.
        ElsewhereError: another process has failed.
    """
    with in_mode(backbone, training=False):
        (features,), labels = collect(loader, [encoding(backbone, device)], dtype=dtype, shared=shared)
    return features, labels


def pixel_features(loader: Iterable[tuple[Tensor, Tensor]], size: int | None = None) -> tuple[Tensor, Tensor]:
    """The images themselves, flattened, as features: the baseline that an encoder has to beat.

    Args:
        loader: yields (images (n, 3, H, W), labels (n,) int64).
        size: larger images are averaged down to this many pixels a side; None: none are.

    Returns:
        Features (N, 3 * H * W) float32 and labels (N,), both on the CPU.

    Raises:
        ValueError: the loader yields nothing.
    """
    (features,), labels = collect(loader, [pixels(size)])
    return features, labels


def encoding(backbone: nn.Module, device: torch.device | str) -> Extract:
    """The features of a backbone that stands on `device`, which gets the images in the type of its weights."""
    dtype = floating_dtype(backbone)
    return lambda images: backbone(images.to(device, dtype))


def pixels(size: int | None) -> Extract:
    """The pixels of images, averaged down to `size` a side where there are more; None: all of them."""

    def flat(images: Tensor) -> Tensor:
        sides = [side if size is None else min(side, size) for side in images.shape[2:]]
        if sides != list(images.shape[2:]):
            images = F.adaptive_avg_pool2d(images.float(), tuple(sides))  # type: ignore[arg-type]
        return images.flatten(1)

    return flat


@torch.no_grad()
def collect(
    loader: Iterable[tuple[Tensor, Tensor]],
    extracts: Sequence[Extract],
    *,
    dtype: torch.dtype = torch.float32,
    shared: bool = False,
    meet: Callable[[], object] = lambda: None,
) -> tuple[list[Tensor], Tensor]:
    """Features of several kinds in one pass over the images.

    Args:
        loader: yields (images, labels (n,) int64).
        extracts: images (n, 3, H, W) to features (n, d), d of each kind.
        dtype, shared: see `encode`.
        meet: of `in_step`, if shared.

    Returns:
        Features (N, d) of each kind and labels (N,), on the CPU.

    Raises:
        NothingToEvaluateError: the loader yields nothing; if shared, all of them.
        ValueError: a feature is beyond what `dtype` can hold.
        ElsewhereError: another process has failed.
    """
    kept: list[_Rows] = []

    def keep_all() -> Iterator[None]:
        for images, labels in loader:
            features = [extract(images) for extract in extracts]
            if not kept:
                capacity = len(labels) * (len(loader) if isinstance(loader, Sized) else 1)
                kept.extend(_Rows(part, dtype, capacity) for part in features)
                kept.append(_Rows(labels, labels.dtype, capacity))
            for rows, part in zip(kept, [*features, labels], strict=True):
                rows.add(part)
            yield

    for _ in in_step(keep_all(), meet) if shared else keep_all():
        pass
    widths = [rows.values.shape[1:] for rows in kept]
    every = [own for own in (exchange(widths) if shared else [widths]) if own]
    if not every:
        raise NothingToEvaluateError("loader yields no batch: there is nothing to evaluate")
    if not kept:  # other processes have some
        kinds = [dtype] * len(extracts) + [torch.int64]
        *parts, labels = [torch.empty(0, *width, dtype=kind) for width, kind in zip(every[0], kinds, strict=True)]
    else:
        *parts, labels = [rows.values for rows in kept]
    return parts, labels


class _Rows:
    """Rows that come batch by batch, in memory of their own: a loader may use that of a batch again.

    Memory for all that are expected is reserved at once, so that no second copy of them is ever made.
    """

    def __init__(self, first: Tensor, dtype: torch.dtype, expected: int) -> None:
        self._memory = torch.empty(expected, *first.shape[1:], dtype=dtype)
        self._count = 0

    @property
    def values(self) -> Tensor:
        return self._memory[: self._count]

    def add(self, rows: Tensor) -> None:
        end = self._count + len(rows)
        if end > len(self._memory):
            more = self._memory.new_empty(max(end, 2 * self._count), *self._memory.shape[1:])
            more[: self._count] = self.values
            self._memory = more
        self._memory[self._count : end] = rows
        self._check_range(rows, self._memory[self._count : end])
        self._count = end

    @staticmethod
    def _check_range(rows: Tensor, kept: Tensor) -> None:
        """Refuse finite values that are infinite once they are kept; those that are not finite are refused later."""
        if kept.dtype == torch.promote_types(kept.dtype, rows.dtype) or bool(torch.isfinite(kept).all()):
            return
        largest = torch.where(torch.isfinite(rows), rows, 0).abs().max()
        if largest > (ends := torch.finfo(kept.dtype).max):
            name = str(kept.dtype).removeprefix("torch.")
            raise ValueError(f"features reach {largest:,.0f}, and {name} ends at {ends:,.0f}: evaluate without --half")


def check_features(
    name: str, features: Tensor, labels_name: str, labels: Tensor, num_classes: int, *, part: bool = False
) -> None:
    """Refuse features and labels that no evaluation can use.

    Args:
        name: what the features are called in errors.
        features: (N, d) floating point.
        labels_name: what the labels are called in errors.
        labels: (N,) int64, 0 to num_classes - 1.
        num_classes: number of classes.
        part: they are one process's, which may be none.

    Raises:
        TypeError: features are no dense tensor of numbers, or labels not int64.
        ValueError: shapes that do not fit, no rows, labels out of range, features that are not finite.
    """
    checks.floating(name, features)
    checks.tensor(labels_name, labels)
    if features.ndim != 2:
        raise ValueError(f"{name} must be (N, d), got {tuple(features.shape)}")
    if labels.dtype != torch.int64:
        raise TypeError(f"{labels_name} must be int64, got {labels.dtype}")
    if not len(features) and not part:
        raise ValueError(f"{name} must have at least one row, got none")
    if labels.shape != features.shape[:1]:
        raise ValueError(
            f"{labels_name} must be ({len(features)},), one label a row of {name}, got {tuple(labels.shape)}"
        )
    if not len(features):
        return
    lowest, highest = (int(value) for value in torch.aminmax(labels))
    if lowest < 0 or highest >= num_classes:
        raise ValueError(
            f"{labels_name} must lie in 0..{num_classes - 1} (num_classes={num_classes}), got {lowest}..{highest}"
        )
    if not _finite(features):
        raise NonFiniteFeaturesError(f"{name} must be finite, got NaN or infinite values")


def _finite(features: Tensor) -> bool:
    """Whether all values are finite, told in one pass without a copy where they are, and not near overflow."""
    pieces = features.split(max(1, _CHECKED // max(features.shape[1], 1)))
    sums_in = torch.promote_types(features.dtype, torch.float32)  # halves overflow
    sums = torch.stack([piece.sum(dtype=sums_in) for piece in pieces])
    return bool(torch.isfinite(sums).all()) or all(bool(torch.isfinite(piece).all()) for piece in pieces)

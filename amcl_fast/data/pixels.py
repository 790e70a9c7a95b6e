"""Values of pixels: by what they are normalised, and whether float16 holds what comes of it."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

_OF_16_BITS = ("16-mixed", "bf16-mixed", "16-true", "bf16-true")


def check_of_pixels(name: str, values: Sequence[float]) -> None:
    """Refuse a mean or a standard deviation that is not of pixels in [0, 1]; to divide by 1 changes nothing."""
    is_mean = name == "mean"
    lowest = "at least 0" if is_mean else "above 0"
    if len(values) == 3 and all(0 < value <= 1 or (is_mean and value == 0) for value in values):
        return
    given = [float(value) for value in values]
    # Both are often given for pixels from 0 to 255.
    of_bytes = len(given) == 3 and all(1 < value <= 255 for value in given)
    instead = f"; divided by 255: {[float(f'{value / 255:.4g}') for value in given]}" if of_bytes else ""
    raise ValueError(f"data.{name} must be three numbers of pixels in [0, 1], {lowest}, got {given}{instead}")


def dtype_of_views(
    wanted: str, precision: str | None, *, on_gpu: bool, mean: Sequence[float], std: Sequence[float]
) -> Literal["float32", "float16"]:
    """The dtype of views, given data.dtype and the trainer's precision, if there is a trainer.

    On the CPU auto is float32: nothing is copied from there, and DALI takes longer for float16.

    Raises:
        ValueError: float16 is asked for and cannot hold what comes of normalised pixels.
    """
    fits = _fits_float16(mean, std)
    if wanted == "float16" and not fits:
        raise ValueError(f"data.dtype must be float32 for data.std {list(std)}, got float16, which ends at 65504")
    halved = wanted == "auto" and precision in _OF_16_BITS and on_gpu and fits
    return "float16" if wanted == "float16" or halved else "float32"


def _fits_float16(mean: Sequence[float], std: Sequence[float]) -> bool:
    """Whether float16 holds every pixel in [0, 1] that is normalised by them, per channel."""
    largest = max(max(m, 1 - m) / s for m, s in zip(mean, std, strict=True))
    return largest <= float(np.finfo(np.float16).max)

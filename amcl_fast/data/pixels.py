"""Values of pixels: by what they are normalised, and whether float16 holds what comes of it."""

from collections.abc import Sequence

import numpy as np


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


def fits_float16(mean: Sequence[float], std: Sequence[float]) -> bool:
    """Whether float16 holds every pixel in [0, 1] that is normalised by them, per channel."""
    largest = max(max(m, 1 - m) / s for m, s in zip(mean, std, strict=True))
    return largest <= float(np.finfo(np.float16).max)

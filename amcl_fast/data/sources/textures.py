"""The images of the built-in data set: ten kinds of texture that only their pattern tells apart.

The class of an image is the kind of pattern that fills it, so it survives crops, flips, colour jitter and
greyscale. Nothing else says much about it: size, place and direction of the pattern, its two colours (and so
whether it is dark on bright or bright on dark), contrast, a gradient over the image and noise are drawn for
every image. So kNN (k = 200, chance 10 %) reaches 15 % on raw pixels and 26 % on an untrained ResNet-18 of
width 16, against 72 and 84 % in two runs of the `demo` recipe with the same seed (sums in another order are enough to
part them).
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

SIDE = 40
"""Side of an image in pixels; a little more than the 32 on which the recipes train."""

Array = NDArray[np.float64]

_LUMA = np.array([0.299, 0.587, 0.114])
_Y, _X = np.mgrid[:SIDE, :SIDE] + 0.5


def draw(texture: str, random: np.random.Generator) -> NDArray[np.uint8]:
    """One image (SIDE, SIDE, 3) of a class.

    Args:
        texture: name of the class, a key of `TEXTURES`.
        random: where everything but the class comes from.

    Raises:
        ValueError: no such texture.
    """
    if texture not in TEXTURES:
        raise ValueError(f"texture must be one of {list(TEXTURES)}, got {texture!r}")
    low = _colour(random)
    high = _colour(random)
    while abs((high - low) @ _LUMA) < 0.4:  # or greyscale would leave little of the pattern
        high = _colour(random)
    pattern = TEXTURES[texture](random, random.uniform(8, 12))
    image = low + (high - low) * pattern[..., None]
    angle = random.uniform(0, 2 * np.pi)
    ramp = (np.cos(angle) * (_X - SIDE / 2) + np.sin(angle) * (_Y - SIDE / 2)) / SIDE
    image += random.uniform(-0.1, 0.1) * ramp[..., None] + random.normal(0, 0.01, image.shape)
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


def _colour(random: np.random.Generator) -> Array:
    """A pale colour: vivid ones would tell images apart so well that an encoder learned nothing else."""
    colour = random.random(3)
    grey = colour @ _LUMA
    return grey + 0.2 * (colour - grey)


# The patterns. Each is (SIDE, SIDE) in [0, 1] and takes the distance, in pixels, at which it about repeats.


def _bars(random: np.random.Generator, period: float) -> Array:
    radius = 0.6 * period
    pattern = np.zeros((SIDE, SIDE))
    for x, y in _scatter(random, 1.3 * radius):
        angle = random.uniform(0, 2 * np.pi)
        along = np.cos(angle) * (_X - x) + np.sin(angle) * (_Y - y)
        across = np.cos(angle) * (_Y - y) - np.sin(angle) * (_X - x)
        bar = np.minimum(radius - np.abs(along), 0.28 * radius - np.abs(across))
        pattern = np.maximum(pattern, _soft(bar))
    return pattern


def _blobs(random: np.random.Generator, period: float) -> Array:
    return _soft(0.35 * period * _waves(random, 1.2 * period))


def _cells(random: np.random.Generator, period: float) -> Array:
    _, distances = _seeds(random, period)
    nearest = np.partition(distances, 1, axis=-1)
    return _soft(0.09 * period + 0.1 - (nearest[..., 1] - nearest[..., 0]))


def _clouds(random: np.random.Generator, period: float) -> Array:
    octaves = sum(scale * _waves(random, 2.5 * scale * period) for scale in (1, 0.5, 0.25, 0.125))
    return np.clip(0.5 + 0.35 * octaves, 0, 1)


def _contours(random: np.random.Generator, period: float) -> Array:
    distance, _ = _nearest_line(1.3 * _waves(random, 3 * period))
    return _soft(0.9 - distance)


def _disks(random: np.random.Generator, period: float) -> Array:
    return _soft(0.4 * period - _distance(_scatter(random, 0.95 * period)))


def _mosaic(random: np.random.Generator, period: float) -> Array:
    seeds, distances = _seeds(random, period)
    return random.random(seeds)[distances.argmin(axis=-1)]


def _rings(random: np.random.Generator, period: float) -> Array:
    distance = _distance(_scatter(random, 1.05 * period))
    return _soft(0.11 * period - np.abs(distance - 0.4 * period))


def _spots(random: np.random.Generator, period: float) -> Array:
    pattern = np.zeros((SIDE, SIDE))
    for x, y in _scatter(random, 0.8 * period):
        pattern += np.exp(-((_X - x) ** 2 + (_Y - y) ** 2) / (2 * (0.28 * period) ** 2))
    return np.minimum(pattern, 1)


def _stripes(random: np.random.Generator, period: float) -> Array:
    angle = random.uniform(0, 2 * np.pi)
    across = (np.cos(angle) * _X + np.sin(angle) * _Y) / period + 0.3 * _waves(random, 30)
    distance, spacing = _nearest_line(across)
    return _soft(spacing / 4 - distance)


TEXTURES: dict[str, Callable[[np.random.Generator, float], Array]] = {
    "bars": _bars,
    "blobs": _blobs,
    "cells": _cells,
    "clouds": _clouds,
    "contours": _contours,
    "disks": _disks,
    "mosaic": _mosaic,
    "rings": _rings,
    "spots": _spots,
    "stripes": _stripes,
}
"""Class name to pattern."""


def _soft(depth: Array) -> Array:
    """Opacity from the depth in pixels below an outline, which is one pixel wide."""
    return np.clip(depth + 0.5, 0, 1)


def _nearest_line(height: Array) -> tuple[Array, Array]:
    """Distance of every pixel from the nearest line on which the height is a whole number, and from that line
    to the next; in pixels.
    """
    spacing = 1 / np.maximum(np.hypot(*np.gradient(height)), 0.02)
    return np.abs(height - height.round()) * spacing, spacing


def _scatter(random: np.random.Generator, distance: float) -> list[list[float]]:
    """Random places [x, y], some outside the image, no two nearer than `distance`."""
    places: list[list[float]] = []
    for place in random.uniform(-distance, SIDE + distance, (150, 2)).tolist():
        if all(math.dist(place, other) > distance for other in places):
            places.append(place)
    return places


def _distances(places: list[list[float]]) -> Array:
    """(SIDE, SIDE, len(places)) of every pixel from every place."""
    x, y = np.array(places).T
    return np.hypot(_X[..., None] - x, _Y[..., None] - y)


def _distance(places: list[list[float]]) -> Array:
    """(SIDE, SIDE) of every pixel from the nearest place."""
    return _distances(places).min(axis=-1)


def _seeds(random: np.random.Generator, period: float) -> tuple[int, Array]:
    """Number of the seeds of cells, and the distance of every pixel from each."""
    places = _scatter(random, 0.75 * period)
    return len(places), _distances(places)


def _waves(random: np.random.Generator, length: float) -> Array:
    """A smooth random field of about unit variance, without a preferred direction."""
    angle, phase = random.uniform(0, 2 * np.pi, (2, 12))
    frequency = 2 * np.pi / length * random.uniform(0.7, 1.2, 12)
    across = np.cos(angle) * _X[..., None] + np.sin(angle) * _Y[..., None]
    return np.cos(frequency * across + phase).sum(axis=-1) / math.sqrt(6)

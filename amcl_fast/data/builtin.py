"""The built-in data set: ten classes of shapes, drawn once and kept as JPEG files.

Made for contrastive learning on a small machine. The class of an image is the kind of shape that is scattered
over it, so it survives crops, flips, colour jitter and greyscale, and most crops show several shapes. All
else says nothing of the class and differs from image to image or from shape to shape: number, places, sizes
and rotations, colours, darker or brighter than the background, the background's tint and gradient, noise.
Raw pixels are therefore next to useless, and so are the features of an untrained encoder.
"""

import fcntl
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .cache import cache_folder

VERSION = 1
"""Part of the folder's name; a change of anything below that changes an image takes the next number."""

SIDE = 40
"""Side of the stored images; a little more than the 32 pixels on which the recipes train."""

SPLITS = {"train": 500, "test": 100}
"""Images of each class."""

Array = NDArray[np.float64]

_LUMA = np.array([0.299, 0.587, 0.114])
_ROWS, _COLUMNS = np.mgrid[:SIDE, :SIDE] + 0.5


def _box(x: Array, y: Array, half_width: float, half_height: float) -> Array:
    return np.minimum(half_width - np.abs(x), half_height - np.abs(y))


def _triangle(x: Array, y: Array) -> Array:
    slope = np.sqrt(0.75)
    return 0.5 + np.minimum(y, np.minimum(-slope * x - y / 2, slope * x - y / 2))


def _star(x: Array, y: Array) -> Array:
    """Five tips at radius 1, notches at 0.42; one half of a tip is drawn, the rest are its mirror images."""
    half = np.pi / 5
    angle = np.abs((np.arctan2(y, x) + half) % (2 * half) - half)
    radius = np.hypot(x, y)
    notch_x, notch_y = 0.42 * np.cos(half), 0.42 * np.sin(half)
    across, along = 1 - radius * np.cos(angle), radius * np.sin(angle)
    return (notch_y * across - (1 - notch_x) * along) / np.hypot(notch_y, 1 - notch_x)


SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "bar": lambda x, y: _box(x, y, 1.0, 0.28),
    "bullseye": lambda x, y: np.maximum(0.17 - np.abs(np.hypot(x, y) - 0.8), 0.36 - np.hypot(x, y)),
    "corner": lambda x, y: np.maximum(_box(x + 0.5, y, 0.25, 0.75), _box(x, y + 0.5, 0.75, 0.25)),
    "crescent": lambda x, y: np.minimum(0.85 - np.hypot(x, y), np.hypot(x - 0.5, y) - 0.62),
    "cross": lambda x, y: np.maximum(_box(x, y, 0.95, 0.24), _box(x, y, 0.24, 0.95)),
    "disk": lambda x, y: 0.8 - np.hypot(x, y),
    "ring": lambda x, y: 0.2 - np.abs(np.hypot(x, y) - 0.72),
    "square": lambda x, y: _box(x, y, 0.72, 0.72),
    "star": _star,
    "triangle": _triangle,
}
"""Class name to shape: distance to the outline, in units of the shape's radius, positive inside."""


def prepare_builtin(cache_dir: Path | None = None) -> Path:
    """The folder of the built-in data set, drawn on the first call: train/CLASS/*.jpg and test/CLASS/*.jpg.

    5,000 training and 1,000 test images of 40×40 pixels. A folder that exists is complete: the images are
    drawn beside it and renamed into place, so a killed call leaves nothing that a later one would take for
    the data set, and of several calls at once one draws while the others wait.

    Args:
        cache_dir: where the folder is kept; by default amcl_fast's cache folder.

    Raises:
        OSError: the cache cannot be written.
    """
    parent = (cache_folder() if cache_dir is None else Path(cache_dir)) / "datasets"
    target = parent / f"builtin-{VERSION}"
    if target.is_dir():
        return target
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed, by the system too
        if not target.is_dir():
            partial = parent / f".{target.name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            _write(partial)
            partial.rename(target)
    return target


def _write(folder: Path) -> None:
    for split_number, (split, size) in enumerate(SPLITS.items()):
        for class_number, name in enumerate(SHAPES):
            parent = folder / split / name
            parent.mkdir(parents=True)
            for number in range(size):
                # One stream an image, so that no image depends on those before it.
                random = np.random.default_rng((VERSION, split_number, class_number, number))
                # Full colour resolution: with the usual halved one, small shapes bleed.
                Image.fromarray(draw(name, random)).save(
                    parent / f"{number:04}.jpg", quality=92, subsampling=0
                )


def draw(shape: str, random: np.random.Generator) -> NDArray[np.uint8]:
    """One image (SIDE, SIDE, 3) of a class.

    Args:
        shape: name of the class, a key of `SHAPES`.
        random: where everything but the class comes from.

    Raises:
        ValueError: no such shape.
    """
    if shape not in SHAPES:
        raise ValueError(f"shape={shape!r}: expected one of {list(SHAPES)}")
    # Colour is kept from telling images apart, or an encoder would learn it and little else: backgrounds are
    # nearly grey, and every shape has a colour of its own.
    background = _saturate(random.uniform(0.3, 0.7, 3), 0.3)
    direction = random.uniform(0, 2 * np.pi)
    ramp = (np.cos(direction) * _COLUMNS + np.sin(direction) * _ROWS) / SIDE
    image = background + random.uniform(-0.1, 0.1) * (ramp - ramp.mean())[..., None]
    typical_radius = random.uniform(4.5, 7.0)
    for row, column in _scatter(random, 1.6 * typical_radius):
        radius = typical_radius * random.uniform(0.85, 1.15)
        _paint(
            image, shape, row, column, radius, random.uniform(0, 2 * np.pi), _contrasting(random, background)
        )
    image += random.normal(0, 0.03, image.shape)
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


def _paint(
    image: Array, shape: str, row: float, column: float, radius: float, angle: float, colour: Array
) -> None:
    """Paint one shape, turned by `angle`, over a part of the image that holds it."""
    reach = radius + 1
    top, left = max(0, int(row - reach)), max(0, int(column - reach))
    part = np.s_[top : int(row + reach) + 1, left : int(column + reach) + 1]
    across, down = (_COLUMNS[part] - column) / radius, (_ROWS[part] - row) / radius
    x = np.cos(angle) * across + np.sin(angle) * down
    y = np.cos(angle) * down - np.sin(angle) * across
    # The outline is as soft as one pixel is wide.
    opacity = np.clip(SHAPES[shape](x, y) * radius + 0.5, 0, 1)[..., None]
    image[part] += opacity * (colour - image[part])


def _scatter(random: np.random.Generator, distance: float) -> list[list[float]]:
    """Random places [row, column], some just outside the image, no two nearer than `distance`."""
    places: list[list[float]] = []
    for place in random.uniform(-2, SIDE + 2, (60, 2)).tolist():
        if all(math.dist(place, other) > distance for other in places):
            places.append(place)
    return places


def _contrasting(random: np.random.Generator, background: Array) -> Array:
    """A colour clearly darker or brighter than the background, so that it stays visible in greyscale."""
    while True:
        colour = random.random(3)
        if abs((colour - background) @ _LUMA) > 0.25:
            return colour


def _saturate(colour: Array, saturation: float) -> Array:
    """The colour moved towards the grey of the same brightness; saturation 1 leaves it as it is."""
    grey = colour @ _LUMA
    return grey + saturation * (colour - grey)

"""The built-in data set: textures that are drawn once and kept as JPEG files, so that nothing is downloaded."""

from pathlib import Path

import numpy as np
from PIL import Image

from amcl_fast.data.cache import cache_folder, make_folder
from amcl_fast.data.sources.textures import TEXTURES, draw
from amcl_fast.runs.in_place import new_folder
from amcl_fast.runs.lock import LOCK, locked

VERSION = 3
"""Part of the folder's name; a change here or in `textures` that changes an image takes the next number."""

SPLITS = {"train": 500, "test": 100}
"""Images of each class."""


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
    make_folder(parent)
    with locked(parent / f".{target.name}{LOCK}"):
        if not target.is_dir():
            with new_folder(target) as partial:
                _write(partial)
    return target


def _write(folder: Path) -> None:
    for split_number, (split, size) in enumerate(SPLITS.items()):
        for class_number, name in enumerate(TEXTURES):
            parent = folder / split / name
            parent.mkdir(parents=True)
            for number in range(size):
                # One stream an image, so that no image depends on those before it.
                random = np.random.default_rng((VERSION, split_number, class_number, number))
                Image.fromarray(draw(name, random)).save(parent / f"{number:04}.jpg", quality=92)

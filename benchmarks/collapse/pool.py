"""The images of the study: views that are made once, and read by every run."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from amcl_fast.data import Augmentation

from ..measure.torchvision_views import view_steps

SIZE = 32
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_NOTHING: dict[str, Any] = {"crop_scale": None, "jitter": 0.0, "grey": 0.0, "blur": 0.0, "flip": 0.0}


def image_files(folder: Path, limit: int) -> tuple[list[str], list[int]]:
    """At most `limit` files of a folder of class folders, as many of each class as there are, and their classes."""
    classes = [sorted(child.iterdir()) for child in sorted(folder.iterdir()) if child.is_dir()]
    if not classes:
        raise ValueError(f"{folder} must hold a folder for each class, got none")
    each = -(-limit // len(classes))
    chosen = [(str(path), label) for label, paths in enumerate(classes) for path in paths[:each]]
    return [path for path, _ in chosen], [label for _, label in chosen]


def _decode(files: Sequence[str], views: int, augmentation: Augmentation, seed: int) -> np.ndarray:
    """uint8 (n, views, 3, SIZE, SIZE); with 0 views the whole images, (n, 1, 3, SIZE, SIZE)."""
    torch.manual_seed(seed)
    view = v2.Compose(view_steps(SIZE, augmentation if views else replace(augmentation, **_NOTHING)))
    result = np.empty((len(files), max(views, 1), 3, SIZE, SIZE), np.uint8)
    for number, file in enumerate(files):
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        for place in range(max(views, 1)):
            result[number, place] = np.asarray(view(image)).transpose(2, 0, 1)
    return result


def make_pool(
    executor: ProcessPoolExecutor,
    data: Path,
    file: Path,
    *,
    train: int,
    test: int,
    views: int,
    letters: str,
    chunks: int,
) -> None:
    """Write views of the training images, and all images as they are, with their classes."""
    augmentation = Augmentation.from_letters(letters)
    train_files, train_labels = image_files(data / "train", train)
    test_files, test_labels = image_files(data / "test", test)

    def parts(files: list[str], views: int) -> list[Any]:
        size = -(-len(files) // chunks)
        starts = range(0, len(files), size)
        return [executor.submit(_decode, files[i : i + size], views, augmentation, i) for i in starts]

    arrays = {"views": parts(train_files, views), "train": parts(train_files, 0), "test": parts(test_files, 0)}
    torch.save(
        {
            **{name: torch.from_numpy(np.concatenate([p.result() for p in made])) for name, made in arrays.items()},
            "train_labels": torch.tensor(train_labels),
            "test_labels": torch.tensor(test_labels),
        },
        file,
    )


@lru_cache(maxsize=1)
def read_pool(file: str, device: str) -> dict[str, Tensor]:
    """What `make_pool` has written, on a device, with `mean` and `std` of a channel."""
    pool = {name: value.to(device) for name, value in torch.load(file, weights_only=True).items()}
    for name, values in (("mean", MEAN), ("std", STD)):
        pool[name] = torch.tensor(values, device=device).view(3, 1, 1)
    return pool


def normalised(images: Tensor, pool: dict[str, Tensor]) -> Tensor:
    """float32 images (n, 3, SIZE, SIZE) of unit variance from bytes."""
    scaled = (images.float() / 255 - pool["mean"]) / pool["std"]
    return scaled.contiguous(memory_format=torch.channels_last)

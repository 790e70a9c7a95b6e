"""Folders of small images, and a cache folder of the test's own."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.small_shards import write_shards

CLASSES = ("ant", "bee", "cow")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("AMCL_FAST_CACHE", str(folder))
    return folder


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes root/CLASS/NUMBER.png: image n of class c has the flat colour (60 c + 40, n, 200)."""

    def make(name: str = "images", per_class: int = 8, size: int = 16, classes: tuple = CLASSES) -> Path:
        for number, label in enumerate(classes):
            folder = tmp_path / name / label
            folder.mkdir(parents=True)
            for image in range(per_class):
                colour = (60 * number + 40, image, 200)
                Image.new("RGB", (size, size), colour).save(folder / f"{image:03}.png")
        return tmp_path / name

    return make


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., str]:
    """Writes an array or a PIL image below the test's folder and returns its path."""

    def write(name: str, image: np.ndarray | Image.Image, **options: object) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        image.save(path, **options)
        return str(path)

    return write


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., Path]:
    """Writes tars of members, (name, content), to tmp_path/NAME, and returns that."""

    def make(shards: dict[str, Iterable[tuple[str, bytes]]], name: str = "shards", **options: Any) -> Path:
        return write_shards(tmp_path / name, shards, **options)

    return make

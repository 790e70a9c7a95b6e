"""Folders of small images, and a cache folder of the test's own."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from amcl_fast.data.loader.bad_files import begin_to_tell
from amcl_fast.data.scan.images import Images
from tests.helpers.damaged_files import JPEG
from tests.helpers.small_shards import noise, write_shards

CLASSES = ("ant", "bee", "cow")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("AMCL_FAST_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def nothing_said() -> None:
    begin_to_tell()


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


@pytest.fixture
def fill(tmp_path: Path) -> Callable[..., Path]:
    """Writes images below root/PATH: `fill("train/ant", 2)`; returns the root."""

    def write(path: str, count: int = 1, content: bytes | None = None) -> Path:
        folder = tmp_path / "root" / path
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            file = folder / f"{path.replace('/', ' ')} {number}.png"
            if content is None:
                Image.new("RGB", (4, 4), (number, len(path), 0)).save(file)
            else:
                file.write_bytes(content)
        return tmp_path / "root"

    return write


@pytest.fixture
def make_images(tmp_path: Path) -> Callable[[int], Images]:
    """Writes as many JPEGs, of which each is a class of its own."""

    def make(count: int) -> Images:
        files = [tmp_path / f"{number:04}.jpg" for number in range(count)]
        for path in files:
            path.write_bytes(JPEG)
        return Images([str(path) for path in files], list(range(count)), [])

    return make


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """40 JPEGs of noise in two classes, 6 to measure on, 3 without a label, 2 that are bad."""
    for part, count in (("train", 20), ("val", 3)):
        for number, label in enumerate(("ant", "bee big")):
            folder = tmp_path / "source" / part / label
            folder.mkdir(parents=True)
            for image in range(count):
                (folder / f"{part[0]}{label[0]}{image}.jpg").write_bytes(noise(100 * number + image, 60))
    (tmp_path / "source" / "unlabeled").mkdir()
    for image in range(3):
        (tmp_path / "source" / "unlabeled" / f"u {image}.x.jpg").write_bytes(noise(900 + image, 60))
    (tmp_path / "source" / "train" / "ant" / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    return tmp_path / "source"

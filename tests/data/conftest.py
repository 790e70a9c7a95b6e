"""Folders of small images, and a cache folder of the test's own."""

import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
    """Writes members, (name, content), to tars of tmp_path/NAME, by default as `samples` makes them; returns it."""

    def make(shards: dict[str, Iterable[tuple[str, bytes]]], name: str = "shards", form: int = tarfile.USTAR_FORMAT):
        for shard, members in shards.items():
            path = tmp_path / name / shard
            path.parent.mkdir(parents=True, exist_ok=True)
            with tarfile.open(path, "w", format=form) as tar:
                for member, content in members:
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        return tmp_path / name

    return make


def picture(number: int, form: str = "PNG", size: int = 16) -> bytes:
    """A flat image whose red is its number."""
    file = io.BytesIO()
    Image.new("RGB", (size, size), (number, 37 * number % 256, 91 * number % 256)).save(file, form)
    return file.getvalue()


def samples(numbers: Iterable[int], classes: int | None = 3) -> Iterator[tuple[str, bytes]]:
    """Members KEY.png and KEY.cls, of class number mod `classes`; without .cls for None."""
    for number in numbers:
        yield f"s/{number:04}.png", picture(number)
        if classes is not None:
            yield f"s/{number:04}.cls", str(number % classes).encode()

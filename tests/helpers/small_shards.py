"""Tars of small samples, as WebDataset has them."""

import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image


def write_shards(root: Path, shards: dict[str, Iterable[tuple[str, bytes]]], form: int = tarfile.USTAR_FORMAT) -> Path:
    """Write tars of members, (name, content), to a folder, which is returned."""
    for shard, members in shards.items():
        path = root / shard
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w", format=form) as tar:
            for member, content in members:
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return root


def picture(number: int, form: str = "PNG", size: int = 16) -> bytes:
    """A flat image whose red is its number."""
    return _encoded(Image.new("RGB", (size, size), (number, 37 * number % 256, 91 * number % 256)), form)


def noise(number: int, size: int = 20) -> bytes:
    """A JPEG of noise, another one for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return _encoded(Image.fromarray(pixels), "JPEG")


def samples(numbers: Iterable[int], classes: int | None = 3, content: object = picture) -> Iterator[tuple[str, bytes]]:
    """Members KEY.png and KEY.cls, of class number mod `classes`; without .cls for None."""
    for number in numbers:
        yield f"s/{number:04}.png", content(number)  # type: ignore[operator]
        if classes is not None:
            yield f"s/{number:04}.cls", str(number % classes).encode()


def _encoded(image: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()

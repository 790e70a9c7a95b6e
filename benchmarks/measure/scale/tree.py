"""A folder like ImageNet's for `bench scale`: classes of hard links to a few hundred JPEG files, gone when it is left.

The links lie in a temporary folder (TMPDIR).
"""

import errno
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amcl_fast.progress import Progress

from ...system import file_system
from ...temporary import removed

FULL = 1_281_000
"""Images of the training part of ImageNet-1k, 1,281 in each of 1,000 classes."""

LEAST = 1_000
"""Images of the small folder beside it, and the least that can be asked for."""

WIDTH, HEIGHT = 500, 375

_CLASSES = 1_000
_LEAST_OF_CLASS = 20
_SOURCES = 256
# ext4 takes 65,000 links to a file.
_MOST_LINKS = 30_000
# Bytes an image in folders and in what is kept of a scan, and beside all of these: sources, runs, their checkpoints.
_ROOM_OF_IMAGE, _ROOM = 700, 300 << 20


@dataclass(frozen=True)
class Tree:
    """What was made.

    Attributes:
        folder: the temporary folder, for whatever else is written.
        full: ROOT/CLASS/IMAGE with `images` images.
        tenth: the same with a tenth as many.
        small: the same with `LEAST`.
        images: number of them in `full`.
        seconds: what making it took.
        sources: files that the links lead to.
        file_system: that they lie on.
    """

    folder: Path
    full: Path
    tenth: Path
    small: Path
    images: int
    seconds: float
    sources: int
    file_system: str


@contextmanager
def tree(images: int, data: Path | None) -> Iterator[Tree]:
    """Make the folders, and remove them when the block is left.

    Args:
        images: of the full one.
        data: folder of classes of photographs, of which at most 256 are copied; None: they are drawn.

    Raises:
        ValueError: too few images, no room or no hard links in TMPDIR, or no image in `data`.
    """
    if images < LEAST:
        raise ValueError(f"--images must be at least {LEAST:,}, got {images:,}")
    where = Path(tempfile.gettempdir())
    _check_room(where, images)
    started = time.monotonic()
    with removed(where) as folder:
        count = max(_SOURCES if data is None else 1, -(-images // _MOST_LINKS))
        sources = _drawn(folder, count) if data is None else _copied(folder, data, count)
        print(f"{images:,} hard links to {len(sources)} images in {folder} (TMPDIR)", flush=True)
        parts = {"small": LEAST, "tenth": images // 10, "full": images}
        for name, count in parts.items():
            _link(sources, folder / name, count)
        seconds = time.monotonic() - started
        print(f"    made in {seconds:.0f} s", flush=True)
        made = Tree(
            folder, folder / "full", folder / "tenth", folder / "small", images, seconds, len(sources),
            file_system(folder),
        )  # fmt: skip
        try:
            yield made
        finally:
            if sys.exc_info()[0] is not None:
                print(f"removing {folder}", file=sys.stderr, flush=True)


def photograph(random: np.random.Generator) -> NDArray[np.uint8]:
    """An image (HEIGHT, WIDTH, 3) with what JPEG finds in photographs: edges of things that hide each other, shading
    and grain with power falling like that of natural images; about 100 kB at quality 92.
    """
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (WIDTH, HEIGHT), _colour(random))
    pen = ImageDraw.Draw(image)
    for _ in range(150):
        # Sizes of things are spread by a power law ("dead leaves").
        radius = min(9 * max(random.random(), 1e-3) ** -0.6, 160)
        x, y, flat = random.uniform(-20, WIDTH + 20), random.uniform(-20, HEIGHT + 20), random.uniform(0.4, 1)
        pen.ellipse((x - radius, y - radius * flat, x + radius, y + radius * flat), fill=_colour(random))
    shade, grain = _field(random, 1.2)[..., None], _field(random, 0.9)[..., None]
    pixels = np.asarray(image, float) * (1 + 0.15 * shade) + 14 * grain + random.normal(0, 3, shade.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _colour(random: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = random.integers(20, 236, 3).tolist()
    return red, green, blue


def _field(random: np.random.Generator, power: float) -> NDArray[np.float64]:
    """(HEIGHT, WIDTH) of zero mean and unit variance, amplitudes falling with frequency to this power."""
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH))
    amplitude = np.maximum(frequency, 1 / WIDTH) ** -power
    field = np.fft.irfft2(amplitude * np.exp(2j * np.pi * random.random(amplitude.shape)), s=(HEIGHT, WIDTH))
    return (field - field.mean()) / field.std()


def _drawn(folder: Path, count: int) -> list[Path]:
    from PIL import Image

    random = np.random.default_rng(0)
    (folder / "sources").mkdir()
    paths = [folder / "sources" / f"{number}.JPEG" for number in range(count)]
    for path in paths:
        Image.fromarray(photograph(random)).save(path, quality=92)
    return paths


def _copied(folder: Path, data: Path, least: int) -> list[Path]:
    """Copies of images of `data`, spread over all of them: links would change what is known of the user's files."""
    from amcl_fast.data.scan.classes import scan_classes

    files = scan_classes(data / "train" if (data / "train").is_dir() else data).files
    chosen = [files[place] for place in np.linspace(0, len(files) - 1, min(_SOURCES, len(files))).astype(int)]
    chosen *= -(-least // len(chosen))
    (folder / "sources").mkdir()
    return [
        Path(shutil.copyfile(path, folder / "sources" / f"{number}{Path(path).suffix}"))
        for number, path in enumerate(chosen)
    ]


def _link(sources: Sequence[Path], root: Path, images: int) -> None:
    """Fill root/CLASS/IMAGE with links, named as in ImageNet, evenly over classes and sources."""
    classes = max(2, min(_CLASSES, images // _LEAST_OF_CLASS))
    root.mkdir()
    number = 0
    with Progress("linking", images) as progress:
        for index in range(classes):
            name = f"n{index:08d}"
            folder = root / name
            folder.mkdir()
            members = images // classes + (index < images % classes)
            for member in range(members):
                source = sources[number % len(sources)]
                try:
                    os.link(source, f"{folder}/{name}_{member}{source.suffix}")
                except OSError as error:
                    raise ValueError(_refusal(error, root.parent)) from error
                number += 1
            progress.add(members)


def _refusal(error: OSError, folder: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        why = "has no room left for them"
    else:
        why = f"takes no more hard links ({error.strerror})"
    return f"TMPDIR must be a folder for {FULL:,} hard links or --images of them, got {folder.parent}, which {why}"


def _check_room(where: Path, images: int) -> None:
    found = os.statvfs(where)
    room, needed = found.f_bavail * found.f_frsize, images * _ROOM_OF_IMAGE + _ROOM
    inodes, wanted = found.f_favail, 2 * _CLASSES + images // _MOST_LINKS + _SOURCES
    # Some file systems have inodes without end and say that they have none.
    if room < needed or (found.f_files and inodes < wanted):
        raise ValueError(
            f"TMPDIR must have {needed / 2**20:,.0f} MiB and {wanted:,} inodes free for --images {images}, got "
            f"{where} with {room / 2**20:,.0f} MiB and {inodes:,}"
        )

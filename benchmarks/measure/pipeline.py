"""Images in, two augmented views out: DALI as the trainer uses it, beside PIL + torchvision v2 with a DataLoader.

A row: `size` (pixels), `letters` (augmentations, see `Augmentation.from_letters`), `library` (`dali`, `torchvision`),
and `images_per_second` and `processor_ms` (per source image, over all threads and child processes) as
[lower quartile, median, upper quartile] of the rounds, with `rounds`; or `missing`, the reason why it was not run. A
letter costs what it adds to the crop alone. Rows that compare where the images are kept have `storage` besides, one of
`STORAGES`, and `bytes` of an image.
"""

import csv
import os
import re
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from amcl_fast.data import Augmentation
from amcl_fast.data.scan.classes import scan_classes
from amcl_fast.data.scan.images import Images

from ..system import child_processes, cores
from ..temporary import removed

LETTERS = ("", "a", "ab", "ac", "ad", "ae", "acde", "abcde")
BATCH = {32: 256, 224: 32}
LIBRARIES = ("dali", "torchvision")
STORAGES: dict[str, int | None] = {"files": None, "shards": None, "shards, 256 px": 256}
"""Where photographs are kept, and the pixels of the shorter side to which they are scaled."""
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PREFETCH = 2
# Bytes that a tar has besides an image and its class, at the most, and what lies beside the shards.
_HEADERS, _ROOM = 4096, 64 << 20


def images(size: int, data: Path | None) -> Images:
    """What the pipelines read: the folder of classes `data`, repeated to 16 batches; for 32 px the built-in images.

    Raises:
        ValueError: `data` is no folder of classes of images.
    """
    if size == 32:
        from amcl_fast.data.sources.builtin import prepare_builtin  # Pillow is an extra

        return scan_classes(prepare_builtin() / "train")
    assert data is not None
    return _repeated(scan_classes(_training(data)), size)


def measure(size: int, letters: str, source: Images, seconds: float, rounds: int = 3) -> list[dict[str, Any]]:
    """The rows of one size and one set of augmentations, the libraries in turn."""
    rows, streams = [], {}
    for library in LIBRARIES:
        row: dict[str, Any] = {"size": size, "letters": letters, "library": library}
        rows.append(row)
        try:
            streams[library] = iter(_STREAMS[library](size, letters, source))
        except ImportError as error:
            row["missing"] = f"not installed: {str(error).splitlines()[0]}"
    found = _in_turn(streams, BATCH[size], seconds, rounds)
    return [row | found.get(row["library"], {}) for row in rows]


def measure_storages(size: int, letters: str, data: Path, seconds: float, rounds: int = 3) -> list[dict[str, Any]]:
    """The rows of where photographs are kept, in turn: as files, and in shards that are packed from them.

    All hold the same images, in the same order: 16 batches, evenly from the whole folder.

    Raises:
        ValueError: `data` is no folder of classes of images, or there is no room in TMPDIR.
        OSError: the shards cannot be written.
    """
    from amcl_fast.data.shards.pack import pack
    from amcl_fast.data.sources.find import find_images

    where = Path(tempfile.gettempdir())
    every = scan_classes(_training(data))
    some = min(len(every.files), 16 * BATCH[size])
    chosen = every.subset(number * len(every.files) // some for number in range(some))
    taken = sum(os.path.getsize(path) for path in chosen.files)
    _check_room(where, taken, some)
    with removed(where) as folder, _cache(folder / "cache"):
        sources, sizes = {"files": chosen}, {"files": taken / some}
        listed = folder / "list.csv"
        with listed.open("w", newline="") as table:
            rows = zip(chosen.files, chosen.labels.tolist(), strict=True)
            csv.writer(table).writerows([("path", "class"), *rows])
        for name, shorter_side in list(STORAGES.items())[1:]:
            shards = folder / name
            packed = pack(listed, shards, shorter_side=shorter_side, shuffle=False)
            sources[name], sizes[name] = find_images(shards).train, packed.bytes / packed.images
        streams = {name: _dali(size, letters, _repeated(source, size)) for name, source in sources.items()}
        found = _in_turn(streams, BATCH[size], seconds, rounds)
        streams.clear()  # or they would read on where nothing is
    about = {"size": size, "letters": letters, "library": "dali"}
    return [about | {"storage": name, "bytes": sizes[name], **found[name]} for name in sources]


def _check_room(where: Path, taken: int, images: int) -> None:
    """Twice the bytes of the images, with a tar's headers, must fit."""
    about = os.statvfs(where)
    room, needed = about.f_bavail * about.f_frsize, 2 * (taken + images * _HEADERS) + _ROOM
    if room < needed:
        raise ValueError(f"TMPDIR must have {needed / 2**20:,.0f} MiB free, got {where} with {room / 2**20:,.0f} MiB")


def _training(data: Path) -> Path:
    return data / "train" if (data / "train").is_dir() else data


def _repeated(images: Images, size: int) -> Images:
    return images.subset(number % len(images.files) for number in range(16 * BATCH[size]))


@contextmanager
def _cache(folder: Path) -> Iterator[None]:
    """Within the block the cache is this folder: what is found in temporary shards is of no use later."""
    before = os.environ.get("AMCL_FAST_CACHE")
    os.environ["AMCL_FAST_CACHE"] = str(folder)
    try:
        yield
    finally:
        del os.environ["AMCL_FAST_CACHE"]
        if before is not None:
            os.environ["AMCL_FAST_CACHE"] = before


def _in_turn(
    streams: Mapping[str, Iterator[Any]], batch: int, seconds: float, rounds: int
) -> dict[str, dict[str, Any]]:
    """Figures of endless streams by name, each measured once a round."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in streams}
    for _ in range(rounds):
        for name, stream in streams.items():
            found[name].append(_rate(stream, batch, seconds / rounds))
    figures: dict[str, dict[str, Any]] = {}
    for name, values in found.items():
        figures[name] = {"rounds": len(values)}
        for figure, column in zip(("images_per_second", "processor_ms"), zip(*values, strict=True), strict=True):
            figures[name][figure] = statistics.quantiles(column, n=4, method="inclusive")
    return figures


def _rate(stream: Iterator[Any], batch: int, seconds: float) -> tuple[float, float]:
    """(images a second, processor milliseconds an image) of an endless stream."""
    # What was prefetched while the stream stood still is not counted; nor is the start of a pipeline.
    for _ in range(_PREFETCH * cores() + 1):
        next(stream)
    started, processor, count = time.monotonic(), _processor_seconds(), 0
    while count < 2 or time.monotonic() - started < seconds:
        next(stream)
        count += 1
    elapsed, processor = time.monotonic() - started, _processor_seconds() - processor
    return count * batch / elapsed, 1e3 * processor / (count * batch)


def _processor_seconds() -> float:
    """User and system time of this process's threads and of its living child processes."""
    own = os.times()
    total = own.user + own.system
    for pid in child_processes():
        with suppress(OSError):  # it has ended since
            # The name of the command, in brackets, may hold spaces.
            fields = re.sub(r".*\) ", "", Path(f"/proc/{pid}/stat").read_text()).split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def _dali(size: int, letters: str, source: Images) -> Iterator[Any]:
    from amcl_fast.data.graph import Output
    from amcl_fast.data.loader.contrastive import ContrastiveLoader

    cuda = torch.cuda.is_available()
    output = Output(
        size=size,
        batch_size=BATCH[size],
        device="gpu" if cuda else "cpu",
        device_id=torch.cuda.current_device() if cuda else None,
        num_threads=cores(),
        prefetch=_PREFETCH,
    )
    loader = ContrastiveLoader(source, [Augmentation.from_letters(letters)] * 2, output)
    return _endless(loader)


def _torchvision(size: int, letters: str, source: Images) -> Iterator[Any]:
    from .torchvision_views import Views

    loader = torch.utils.data.DataLoader(
        Views(source.files, size, Augmentation.from_letters(letters), _MEAN, _STD),
        batch_size=BATCH[size],
        shuffle=True,
        drop_last=True,
        num_workers=cores(),
        prefetch_factor=_PREFETCH,
        persistent_workers=True,
    )
    return _endless(loader)


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


_STREAMS = {"dali": _dali, "torchvision": _torchvision}

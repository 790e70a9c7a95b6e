"""Any source of images as shards: `amcl-fast pack` (docs/data.md)."""

import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from amcl_fast.data.loader.order import permutation
from amcl_fast.data.locations import shown, size_of, spans
from amcl_fast.data.packed_paths import PackedPaths
from amcl_fast.data.processes.pool import Pool
from amcl_fast.data.scan.images import Images
from amcl_fast.data.scan.limits import DEFAULT_LIMITS, Limits
from amcl_fast.data.shards import pack_process
from amcl_fast.data.shards.manifest import Shard, check_same, read_manifest, whole_shards, write_manifest
from amcl_fast.data.shards.read import CLASSES
from amcl_fast.data.shards.writer import RECORD, Writer
from amcl_fast.data.sources.find import find_images
from amcl_fast.data.sources.folder import Sources
from amcl_fast.data.sources.named import data_path
from amcl_fast.extras import require
from amcl_fast.left_out import listed
from amcl_fast.progress import Progress
from amcl_fast.runs.directory import SKIPPED
from amcl_fast.runs.files import remove_partial, write_file
from amcl_fast.runs.lock import LOCK, RunLock
from amcl_fast.setting_types import LARGEST_WHOLE, whole, written

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *([KMG]i?B)", re.IGNORECASE)
_TOGETHER = 32  # images of a job at most
_JOB_BYTES = 4 << 20  # of its images, if it has more than one: several jobs of each process are in memory
_ASKING = 16  # threads that ask for sizes: a network folder answers many at once
_ASKED = 4096  # files of which a thread asks before it tells
_STEM = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST_STEM = 60


@dataclass
class Packed:
    """What was packed.

    Attributes:
        images: how many, in all parts.
        shards: paths of the tars.
        bytes: of all of them.
        left_out: (what is shown, reason) of every image that is in none.
    """

    images: int = 0
    shards: list[str] = field(default_factory=list)
    bytes: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class _Part:
    """Images of a part in the order in which they are packed, labels and bytes of each, and the whole shards."""

    name: str
    files: PackedPaths
    labels: np.ndarray
    sizes: np.ndarray
    shards: list[Shard] = field(default_factory=list)

    @property
    def taken(self) -> int:
        return sum(shard.taken for shard in self.shards)


def pack(
    source: str | Path,
    target: str | Path,
    *,
    shorter_side: int | None = None,
    shard_size: str | int = "256MB",
    shuffle: bool = True,
    seed: int = 0,
    held_out: str | Path | None = None,
    workers: int | None = None,
    max_image_bytes: int = DEFAULT_LIMITS.bytes,
    max_image_pixels: int = DEFAULT_LIMITS.pixels,
) -> Packed:
    """Write the images of a source as tars of samples, train-000000.tar and so on, and the held-out ones as val-….

    A call that was interrupted is gone on with by the same call, and leaves the same bytes as one that was not. Only
    whole shards ever have their name.

    Args:
        source: folder, list or shards, or a name, as data.root may be.
        target: folder; it is made.
        shorter_side: pixels to which a longer shorter side is scaled; None: images are copied.
        shard_size: of a shard at most, as bytes ("256MB", "1 GiB") or a number of images.
        shuffle: the training images, once.
        seed: of that.
        held_out: as data.held_out.
        workers: processes; None: one for each core.
        max_image_bytes, max_image_pixels: as of `ContrastiveDataModule`: larger images are left out and listed.

    Raises:
        ValueError: a setting is out of range, the source holds no usable image, or the target something else.
        OSError: something cannot be read or written.
        ImportError: Pillow is missing, which scales.
    """
    for what, value, most in (
        ("shorter_side", shorter_side, 65_535),
        ("workers", workers, 1024),
        ("max_image_bytes", max_image_bytes, LARGEST_WHOLE),
        ("max_image_pixels", max_image_pixels, LARGEST_WHOLE),
    ):
        if value is not None:
            whole(what, value, 1, most)
    whole("seed", seed, 0)
    most_images, most_bytes = _limits(shard_size)
    limits = Limits(max_image_bytes, max_image_pixels)
    if shorter_side is not None:
        require("packing to a shorter side", "PIL")
    source, held_out = data_path(source), data_path(held_out) if held_out else None
    folder = _target(target, source, held_out)
    read_manifest(folder)
    found = find_images(source, held_out, limits=limits)
    parts, images = _parts(found, seed if shuffle else None)
    settings: dict[str, Any] = {
        "shorter_side": shorter_side,
        "shard_size": str(shard_size),
        "shuffle": shuffle,
        "seed": seed if shuffle else None,
        "classes": len(found.train.classes),
        "class_names": _digest(_lines(found.train.classes).encode()),
        "images": images,
    }
    check_same(folder, read_manifest(folder), settings)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        # Again: what another process has packed while this one looked at the images.
        manifest = read_manifest(folder)
        check_same(folder, manifest, settings)
        for part in parts:
            part.shards = whole_shards(folder, part.name, manifest)

        def keep(complete: bool = False) -> None:
            known = {part.name: part.shards for part in parts}
            write_manifest(folder, os.path.abspath(source), settings, known, complete)

        keep()
        if found.train.classes:
            write_file(folder / CLASSES, _lines(found.train.classes))
        left = sum(len(part.files) - part.taken for part in parts)
        pool = Pool("shards.pack_process", limits.arguments, workers)
        with Progress("packing images", left) as progress, pool:
            for part in parts:
                _write_part(folder, part, pool, shorter_side, most_images, most_bytes, keep, progress)
        shards = [shard for part in parts for shard in part.shards]
        skipped = [entry for part in _given(found).values() for entry in part.skipped]
        skipped += [(name, reason) for shard in shards for name, reason in shard.left_out]
        if skipped:
            write_file(folder / SKIPPED, listed(skipped))
        keep(complete=True)
    return Packed(
        sum(shard.images for shard in shards),
        [str(folder / shard.name) for shard in shards],
        sum(shard.bytes for shard in shards),
        skipped,
    )


def _target(target: str | Path, *sources: Path | None) -> Path:
    """The folder of the shards, which may be none of the sources nor within one."""
    folder = Path(os.path.abspath(target))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} must be a folder or not there, got a file")
    for path in sources:
        within = (path or Path(os.devnull)).resolve()
        if within.is_dir() and Path(os.path.realpath(folder)).is_relative_to(within):
            raise ValueError(f"{folder} must lie outside of what is packed, {within}")
    return folder


def _given(found: Sources) -> dict[str, Images]:
    parts = {"train": found.train, "held_out": found.held_out, "unlabelled": found.unlabelled}
    return {name: part for name, part in parts.items() if part is not None}


def _parts(found: Sources, seed: int | None) -> tuple[list[_Part], dict[str, list[str]]]:
    """What is packed, and what tells the images from others, by the name of what was found.

    Args:
        found: what there is.
        seed: of the training images' order; None: as they were found.
    """
    odd = next((name for name in found.train.classes if not name.isprintable()), None)
    if odd is not None:
        raise ValueError(f"the name of a class must be a line of text, got {odd!r}")
    images = _given(found)
    sizes = {name: _sizes(part.files) for name, part in images.items()}
    training = [name for name in images if name != "held_out"]
    parts = [
        _Part(
            "train",
            PackedPaths.join(images[name].files for name in training),
            np.concatenate([images[name].labels for name in training]),
            np.concatenate([sizes[name] for name in training]),
        )
    ]
    if seed is not None:
        order = permutation((seed,), len(parts[0].files))
        parts[0] = _Part("train", parts[0].files.take(order), parts[0].labels[order], parts[0].sizes[order])
    if found.held_out is not None:
        parts.append(_Part("val", found.held_out.files, found.held_out.labels, sizes["held_out"]))
    return parts, {name: [part.fingerprint, _digest(sizes[name].tobytes())] for name, part in images.items()}


def _lines(names: Sequence[str]) -> str:
    return "".join(f"{name}\n" for name in names)


def _limits(shard_size: str | int) -> tuple[float, float]:
    """The most images of a shard, and the most bytes."""
    images = size = 0.0
    if isinstance(shard_size, int) or re.fullmatch(r"\d{1,18}", shard_size):
        images, size = int(shard_size), math.inf
    elif match := _SIZE.fullmatch(shard_size.strip()):
        images, size = math.inf, float(match[1]) * _UNITS[match[2].upper()]
    if images < 1 or size < RECORD:
        raise ValueError(
            f"shard_size must be bytes with a unit (256MB, 1GiB) or a number of images, got {written(shard_size)}"
        )
    return images, size


def _sizes(files: PackedPaths) -> np.ndarray:
    """Bytes of each image, (n,) int64; 0 of one that is not there any more."""

    def asked(start: int) -> np.ndarray:
        return np.array([size_of(location) for location in files[start : start + _ASKED]], np.int64)

    starts = range(0, len(files), _ASKED)
    found = [np.empty(0, np.int64)]
    with Progress("asking for sizes", len(files)) as progress, ThreadPoolExecutor(_ASKING) as threads:
        try:
            for part in threads.map(asked, starts):
                found.append(part)
                progress.add(len(part))
        except BaseException:  # Ctrl-C: nobody waits for the rest
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return np.concatenate(found)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write_part(
    folder: Path,
    part: _Part,
    pool: Pool,
    shorter_side: int | None,
    most_images: float,
    most_bytes: float,
    keep: Callable[[], None],
    progress: Progress,
) -> None:
    """Write the shards that are missing of a part, one after the other."""
    jobs_of = spans(part.sizes[part.taken :].tolist(), _TOGETHER, _JOB_BYTES, part.taken)

    def jobs() -> Iterator[bytes]:
        return (pack_process.job([*part.files[start:end]], shorter_side) for start, end in jobs_of)

    digits = max(8, len(str(len(part.files))))
    file: Writer | None = None
    try:
        for (start, _), answer in zip(jobs_of, pool.map(jobs()), strict=True):
            found = pack_process.images(answer)
            for place, (content, ending, reason) in enumerate(found, start):
                location = shown(part.files[place])
                if file is not None and reason is None and not file.has_room(len(content), most_images, most_bytes):
                    part.shards.append(file.finish())
                    keep()
                    file = None
                file = file or Writer(folder / f"{part.name}-{len(part.shards):06}.tar")
                file.taken += 1
                if reason is not None:
                    file.left_out.append((location, reason))
                    continue
                stem = _STEM.sub("_", os.path.splitext(os.path.basename(location))[0])[:_LONGEST_STEM]
                file.add(f"{place:0{digits}}-{stem}", content, ending, int(part.labels[place]))
            progress.add(len(found))
        if file is not None:
            if not file.images:
                raise ValueError(f"no image of {part.name} can be packed, the first: {': '.join(file.left_out[0])}")
            part.shards.append(file.finish())
            keep()
            file = None
    finally:
        if file is not None:
            file.give_up()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps a second `pack` out of a folder, as long as the process lives at most, and leaves there what is whole."""
    with RunLock() as lock:
        lock.acquire(folder, "packs there")
        remove_partial(folder)  # of one that was killed: it may be as large as a shard
        try:
            yield
        finally:
            remove_partial(folder)
            with suppress(OSError):
                (folder / LOCK).unlink()

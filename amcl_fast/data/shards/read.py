"""Tars of samples, as WebDataset has them: which there are, and the images in them."""

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from amcl_fast.data.cache import cache_folder, in_use, unkept, write_whole
from amcl_fast.data.locations import NUL
from amcl_fast.data.packed_paths import PackedPaths
from amcl_fast.data.processes.pool import Pool
from amcl_fast.data.scan.largest import Largest
from amcl_fast.data.scan.limits import DEFAULT_LIMITS, Limits
from amcl_fast.data.scan.undecodable import UNDECODABLE, find_undecodable
from amcl_fast.data.shards.index import Index
from amcl_fast.data.sources.numbered import Found
from amcl_fast.left_out import few
from amcl_fast.progress import Progress
from amcl_fast.runs.reading import read_bytes

log = logging.getLogger(__name__)

_MOST_BYTES = 1 << 32
"""Of a kept index: some tens of bytes for each image of a tar."""

CLASSES = "classes.txt"
"""Names of the classes, a line each, beside the shards or a folder above; the first is of number 0."""


def class_names(shards: Sequence[str]) -> list[str] | None:
    """The names that lie beside some shards, or a folder above; None if there are none.

    Raises:
        ValueError: two classes have the same.
        OSError: they cannot be read.
    """
    folder = Path(os.path.abspath(shards[0])).parent
    for path in (folder / CLASSES, folder.parent / CLASSES):
        if path.is_file():
            try:
                names = path.read_text("utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} must be UTF-8, got byte {error.start}: {error.reason}") from None
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise ValueError(f"{path} must name each class once, got {twice!r} several times")
            return names
    return None


def read_shards(
    shards: Sequence[str], name: Callable[[int], str] = str, tell: bool = True, limits: Limits = DEFAULT_LIMITS
) -> Found:
    """The images of some tars, in their order. What is in a tar that has not changed, the cache tells.

    Args:
        shards: absolute paths.
        name: of the class of a number, where no names lie beside the shards.
        tell: show how far it has come, should it take long.
        limits: what is too large.

    Raises:
        ValueError: a number has no name among those that lie beside the shards.
        OSError: DALI decodes nothing at all in a new process, or the names cannot be read.
    """
    indices = _indices(shards, tell, limits)
    names = class_names(shards) if shards else None
    files = [
        PackedPaths.in_shard(shard, index.rests, np.frombuffer(index.lengths, np.int32))
        for shard, index in zip(shards, indices, strict=True)
    ]
    numbers = np.concatenate([np.empty(0, np.int32), *(np.frombuffer(index.labels, np.int32) for index in indices)])
    left_out = [
        (f"{shard}/{name}" if name else shard, reason)
        for shard, index in zip(shards, indices, strict=True)
        for name, reason in index.left_out
    ]
    if names is not None and len(numbers) and numbers.max() >= len(names):
        raise ValueError(
            f"{CLASSES} beside {shards[0]} must name all classes, got {len(names):,} and a {numbers.max():,}.cls"
        )
    largest = Largest.joined(index.largest for index in indices)
    found = Found(PackedPaths.join(files), numbers, name if names is None else _naming(names), largest, left_out)
    odd = [f"{shard}/{label}" for shard, index in zip(shards, indices, strict=True) for label in index.not_numbers]
    if odd:
        found.notes.append(f"{len(odd):,} .cls hold no number of a class, so their images have no label: {few(odd)}")
    return found


def _naming(names: Sequence[str]) -> Callable[[int], str]:
    """The name of the class of a number; beyond the names, where shards to measure on have more, one of no class."""
    known = set(names)

    def name(number: int) -> str:
        if number < len(names):
            return names[number]
        return f"number {number}" if str(number) in known else str(number)

    return name


def _indices(shards: Sequence[str], tell: bool, limits: Limits) -> list[Index]:
    indices = [_load(shard, limits) for shard in shards]
    new = [place for place, index in enumerate(indices) if index is None]
    if new:
        with (
            Pool("shards.index", limits.arguments, processes=min(len(new), len(os.sched_getaffinity(0)))) as pool,
            Progress("indexing shards", len(new), shown=tell) as progress,
        ):
            for place, answer in zip(new, pool.map(os.fsencode(shards[place]) for place in new), strict=True):
                indices[place] = index = Index.decoded(answer)
                if not index.doubtful:  # at once: an interrupted run goes on there
                    _save(shards[place], index, limits)
                progress.add(1)
    found = [index for index in indices if index is not None]
    undecided = [(shards[place], found[place]) for place in new if found[place].doubtful]
    _try_doubtful(undecided, tell, limits)
    for shard, index in undecided:
        _save(shard, index, limits)
    return found


def _try_doubtful(new: list[tuple[str, Index]], tell: bool, limits: Limits) -> None:
    """Leave out what only decoding could judge, and what it did not decode."""
    doubtful = {}
    for shard, index in new:
        files = PackedPaths.in_shard(shard, index.rests, np.frombuffer(index.lengths, np.int32))
        doubtful.update({files[place]: (index, place) for place in index.doubtful})
    bad: dict[int, set[int]] = {}
    if doubtful:
        with Progress("decoding doubtful images", len(doubtful), shown=tell) as progress:
            undecodable = find_undecodable(list(doubtful), progress.add, limits)
        for location, certain in undecodable.items():
            index, place = doubtful[location]
            bad.setdefault(id(index), set()).add(place)
            index.lasting &= certain
            index.left_out.append((location.rpartition(NUL)[2], UNDECODABLE))
    for _, index in new:
        index.drop(bad.get(id(index), set()))


def _cached(shard: str, limits: Limits) -> Path:
    return cache_folder() / "shards" / f"{hashlib.sha256(os.fsencode(shard + limits.key)).hexdigest()[:32]}.index"


def _load(shard: str, limits: Limits) -> Index | None:
    try:
        status = os.stat(shard)
        index = Index.decoded(read_bytes(_cached(shard, limits), _MOST_BYTES))
        in_use(_cached(shard, limits))
    except (OSError, ValueError, TypeError):
        return None
    return index if (index.size, index.mtime) == (status.st_size, status.st_mtime_ns) else None


def _save(shard: str, index: Index, limits: Limits) -> None:
    if not index.lasting:
        return
    try:
        write_whole(_cached(shard, limits), index.encoded())
    except OSError as error:
        unkept(f"what is in {shard}", error)

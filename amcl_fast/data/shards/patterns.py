"""Paths that stand for several tars, and what a tar is called."""

import itertools
import math
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from glob import glob

from amcl_fast.data.scan.identity import identity
from amcl_fast.left_out import few

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_GLOB = re.compile(r"[*?\[]")
_MOST_SHARDS = 1_000_000
_COMPRESSED = (".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4", ".tgz", ".tbz", ".tbz2", ".txz")


def is_tar(path: str) -> bool:
    """Whether a file is named as a tar."""
    return path.lower().endswith(".tar")


def is_compressed(path: str) -> bool:
    """Whether a file is named as a compressed tar."""
    return path.lower().endswith(_COMPRESSED)


def refuse_compressed(paths: Iterable[str]) -> None:
    """Raise ValueError, in one line, if one is named as a compressed tar."""
    if packed := next(filter(is_compressed, paths), None):
        raise ValueError(f"{packed} is compressed: unpack it to a .tar, in which each image has a place of its own")


def is_pattern(path: str) -> bool:
    """Whether a path stands for several: it has {…}, *, ? or [, and no file has it as its name."""
    return bool(_BRACES.search(path) or _GLOB.search(path)) and not os.path.lexists(path)


def expand(pattern: str) -> list[str]:
    """The tars for which {000000..001023}, {a,b}, * and ? stand, in their order; several of these multiply.

    Raises:
        ValueError: braces hold neither a range nor alternatives, or stand for too much, or for what is no tar.
    """
    fixed, choices = _BRACES.split(pattern)[::2], []
    for inside in _BRACES.findall(pattern):
        if span := _RANGE.fullmatch(inside):
            first, last = map(int, span.groups())
            width = len(span[1]) if len(span[1]) == len(span[2]) or span[1].startswith("0") else 0
            if last < first or last - first >= _MOST_SHARDS:
                raise ValueError(f"{pattern}: {{{inside}}} must be a range upwards of at most {_MOST_SHARDS:,}")
            choices.append([f"{number:0{width}}" for number in range(first, last + 1)])
        elif "," in inside:
            choices.append(inside.split(","))
        else:
            raise ValueError(f"{pattern}: braces must hold a range (000000..001023) or names (a,b), got {{{inside}}}")
    if math.prod(map(len, choices)) > _MOST_SHARDS:
        raise ValueError(f"{pattern} stands for more than {_MOST_SHARDS:,} files")
    paths = [
        fixed[0] + "".join(itertools.chain(*zip(chosen, fixed[1:], strict=True)))
        for chosen in itertools.product(*choices)
    ]
    found = [tar for path in paths for tar in (sorted(glob(path)) if _GLOB.search(path) else [path])]
    refuse_compressed(found)
    if other := next((path for path in found if not is_tar(path)), None):
        raise ValueError(f"{pattern} must stand for tars, got {other}")
    return found


def once(paths: Iterable[str], where: str) -> tuple[list[str], list[str]]:
    """The shards, each real file once, and a line on those that are passed over."""
    real: dict[tuple[int, int] | str, str] = {}
    again = []
    for path in paths:
        key: tuple[int, int] | str = os.path.realpath(path)  # of one that is not there
        with suppress(OSError):
            key = identity(path)
        if key in real:
            again.append(path)
        else:
            real[key] = path
    notes = [f"{len(again):,} shard(s) of {where} repeat others and are passed over: {few(again)}"] if again else []
    return [*real.values()], notes


def existing(paths: Sequence[str], where: str) -> tuple[list[str], list[tuple[str, str]], list[str]]:
    """The shards that are there, each once; those that are not, with the reason; lines on both.

    Raises:
        ValueError: none is.
    """
    if not paths:
        raise ValueError(f"no file is named like {where}")
    paths, notes = once(paths, where)
    missing = [path for path in paths if not os.path.lexists(path)]
    if len(missing) == len(paths):
        raise ValueError(f"none of the {len(paths):,} shards of {where} exists: {few(missing)}")
    if missing:
        notes.append(f"{len(missing):,} of the {len(paths):,} shards of {where} are missing: {few(missing)}")
    absent = set(missing)
    return [path for path in paths if path not in absent], [(path, "no such file") for path in missing], notes


def is_there(root: str) -> bool:
    """Whether a path exists, or one of those for which a pattern stands.

    Raises:
        ValueError: a pattern is not to be understood.
    """
    return any(map(os.path.exists, expand(root))) if is_pattern(root) else os.path.exists(root)

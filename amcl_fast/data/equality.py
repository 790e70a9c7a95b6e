"""What all processes of a run must have alike: images, or their batches differ in number, and a part of the batch."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch.distributed as dist

from amcl_fast.data.scan.images import Images
from amcl_fast.data.sources.list_cache import machine


class UnequalImagesError(RuntimeError):
    """The processes of a run have found different images; in one line, as errors of files are told."""


class UnevenBatchError(ValueError):
    """The batch cannot be shared equally by the processes of a run."""


class Found(NamedTuple):
    """What a process says of its images.

    Attributes:
        machine: on which it runs.
        name: of the list of all images that were found, paths included.
        is_kept: whether another process of the machine has found them.
        parts: of those to train, to measure on, and to learn from where these are others, the number, a digest of
            labels and names, one of the classes' names.
    """

    machine: str
    name: str | None
    is_kept: bool
    parts: list[tuple[int, str, str]]


def found_by_all(images: Iterable[Images], name: str | None, is_kept: bool, processes: int) -> list[Found]:
    """What each process says; all of them must call this.

    Args:
        images: of this process, the parts as of `Found`.
        name: as of `Found`.
        is_kept: as of `Found`.
        processes: how many there are.
    """
    found: list[Any] = [None] * processes
    parts = [
        (len(part.files), part.fingerprint, hashlib.sha256(os.fsencode("\0".join(part.classes))).hexdigest())
        for part in images
    ]
    dist.all_gather_object(found, Found(machine(), name, is_kept, parts))
    return found


def stale(found: Sequence[Found]) -> list[bool]:
    """Of each process whether what it has was kept by another and is none of what those of its machine have found.

    It may be of an earlier run, if the cache cannot be written any more.
    """
    looked = {(one.machine, one.name) for one in found if not one.is_kept}
    return [one.is_kept and (one.machine, one.name) not in looked for one in found]


def refuse_unequal(root: str, found: Sequence[Found]) -> None:
    """Raise UnequalImagesError if the processes have found different images."""
    if any(other.parts != found[0].parts for other in found):
        counts = ", ".join(" and ".join(f"{count:,}" for count, *_ in one.parts) for one in found)
        raise UnequalImagesError(
            f"{root} must hold the same images for every process, got {counts} to train on and held out: it "
            "changes, or is another folder on another machine"
        )


def refuse_uneven(batch_size: int, processes: int) -> None:
    """Raise UnevenBatchError if the batch cannot be shared equally."""
    if batch_size % processes:
        raise UnevenBatchError(f"batch_size must divide by the {processes} processes, got {batch_size}")

"""Where an image lies: in a file of its own, or within a tar.

A location is a path, or of a member of a tar SHARD, OFFSET, LENGTH and MEMBER with a NUL between them: the path of the
tar, where the member's bytes begin and how many there are, decimal, and its name. No path holds a NUL. Locations are
text with surrogates for what is no UTF-8, as paths are.

Neither torch nor numpy is imported here.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

NUL = "\0"


class Member(NamedTuple):
    """A member of a tar.

    Attributes:
        shard: path of the tar.
        offset: of its first byte.
        length: bytes.
        name: as it stands in the tar.
    """

    shard: str
    offset: int
    length: int
    name: str

    @property
    def location(self) -> str:
        """The text that `member` understands."""
        return NUL.join((self.shard, str(self.offset), str(self.length), self.name))


def member(location: str) -> Member | None:
    """What a location says of a member of a tar; None if it is a path."""
    if NUL not in location:
        return None
    shard, offset, length, name = location.split(NUL, 3)
    return Member(shard, int(offset), int(length), name)


def shown(location: str) -> str:
    """A location as people are told of it: a path, or SHARD/MEMBER."""
    found = member(location)
    return location if found is None else f"{found.shard}/{found.name}"


def absolute(location: str) -> str:
    """The same place, whatever the process's folder."""
    if location.startswith("/"):
        return location
    path, nul, rest = location.partition(NUL)
    return os.path.abspath(path) + nul + rest


def size_of(location: str) -> int:
    """Bytes of the encoded image; 0 of one that is not there any more."""
    if (found := member(location)) is not None:
        return found.length
    with suppress(OSError):
        return os.stat(location).st_size
    return 0


def spans(sizes: Sequence[int], most: int, most_bytes: int, start: int = 0) -> list[tuple[int, int]]:
    """Divide images into groups of one, or of more up to a number and to bytes.

    Args:
        sizes: bytes of each.
        most: images of a group.
        most_bytes: of a group that has more than one image.
        start: place of the first image.

    Returns:
        Places of each group, from and to.
    """
    found, begin, held = [], start, 0
    for place, size in enumerate(sizes, start):
        if place > begin and (place - begin == most or held + size > most_bytes):
            found.append((begin, place))
            begin, held = place, 0
        held += size
    end = start + len(sizes)
    return [*found, (begin, end)] if begin < end else found

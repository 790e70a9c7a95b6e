"""Where an image lies: in a file of its own, or within a tar.

A location is a path, or of a member of a tar SHARD, OFFSET, LENGTH and MEMBER with a NUL between them: the path of the
tar, where the member's bytes begin and how many there are, decimal, and its name. No path holds a NUL. Locations are
text with surrogates for what is no UTF-8, as paths are.

Neither torch nor numpy is imported here.
"""

import os
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

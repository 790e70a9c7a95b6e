"""What tells real files and folders from others, whatever their names. Neither torch nor numpy is imported here."""

import os

Id = tuple[int, int]
"""Device and inode."""


def identity(path: str) -> Id:
    """What tells a real file or folder from others, whatever its names.

    Raises:
        OSError: there is none.
    """
    status = os.stat(path)
    return status.st_dev, status.st_ino


def lineage(path: str) -> set[Id]:
    """A folder and all folders in which it really lies."""
    found, path = set(), os.path.realpath(path)
    while True:
        found.add(identity(path))
        parent = os.path.dirname(path)
        if parent == path:
            return found
        path = parent

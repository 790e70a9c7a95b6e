"""The files below folders: each real folder once, under its own name rather than through a link."""

import os
from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

FOLDER_UNREADABLE = "the folder cannot be read"
LINK = "a link"
SAME = "the same folder as"
"""How the reasons begin for which folders are not entered."""

_Id = tuple[int, int]  # device and inode
_Key = TypeVar("_Key", bound=Hashable)


def list_files(roots: Iterable[str], starts: Mapping[_Key, str]) -> tuple[dict[_Key, list[str]], list[tuple[str, str]]]:
    """List the files in some folders and below. What begins with a dot is ignored.

    Links to folders are followed after all that lies there under its own name, each real folder once; so is none that
    leads up to a folder in which it lies, or to `roots` and above. A data set is therefore never counted twice, and
    links in circles end.

    Args:
        roots: folders that make up the data set.
        starts: the folders to list, by any key; a link among them is followed like others.

    Returns:
        The files of every start, sorted, and (path, reason) of every folder that was not entered.
    """
    files: dict[_Key, list[str]] = {key: [] for key in starts}
    left_out: list[tuple[str, str]] = []
    above = {folder for root in roots for folder in lineage(root)}
    seen: dict[_Id, str] = {}
    folders: deque[tuple[_Key, str]] = deque()
    links: deque[tuple[_Key, str]] = deque()
    for start in starts.items():
        (links if os.path.islink(start[1]) else folders).append(start)
    while folders or links:
        is_link = not folders
        key, path = (folders or links).popleft()
        try:
            here = identity(path)
            if here in seen or (is_link and here in above):
                what = f"{LINK} to" if is_link else SAME
                other = seen.get(here, os.path.realpath(path))
                left_out.append((path, f"{what} {other}, which is in the data set already"))
                continue
            if is_link and here in lineage(os.path.dirname(path)):
                left_out.append((path, f"{LINK} up to {os.path.realpath(path)}, in which it lies"))
                continue
            seen[here] = path
            with os.scandir(path) as iterator:
                entries = sorted((entry for entry in iterator if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            left_out.append((path, f"{FOLDER_UNREADABLE}: {error.strerror}"))
            continue
        for entry in entries:
            if not is_folder(entry):
                files[key].append(entry.path)
            else:
                (links if entry.is_symlink() else folders).append((key, entry.path))
    return {key: sorted(found) for key, found in files.items()}, left_out


def identity(path: str) -> _Id:
    """What tells a real folder from others, whatever its names.

    Raises:
        OSError: there is none.
    """
    status = os.stat(path)
    return status.st_dev, status.st_ino


def lineage(path: str) -> set[_Id]:
    """A folder and all folders in which it really lies."""
    found, path = set(), os.path.realpath(path)
    while True:
        found.add(identity(path))
        parent = os.path.dirname(path)
        if parent == path:
            return found
        path = parent


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False

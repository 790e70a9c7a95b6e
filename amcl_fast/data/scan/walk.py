"""The files below folders: each real folder once, under its own name rather than through a link."""

import os
from array import array
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain, count
from typing import Any, NamedTuple, TypeVar

import numpy as np

from amcl_fast.data.packed_paths import PackedPaths
from amcl_fast.data.scan.identity import Id, identity, lineage
from amcl_fast.left_out import FOLDER_UNREADABLE, LINK, SAME

_LITTER = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"}
"""Folders that systems leave in those of their users: copies and thumbnails of the images, if any. In lower case."""
_LITTER_FILES = {"thumbs.db", "thumbs.db:encryptable", "ehthumbs.db", "desktop.ini", "icon\r"}
"""Files likewise."""

_TRIED = 10  # pairs of files of one number
_Key = TypeVar("_Key", bound=Hashable)


class _Content(NamedTuple):
    """Names of what lies in a folder, sorted."""

    names: bytes  # of files, each followed by a NUL: those of a large data set are many
    ids: bytes  # of uint64, one a file: the same for the same real file
    folders: list[str]
    links: list[str]  # to folders

    @property
    def files(self) -> list[str]:
        return os.fsdecode(self.names).split("\0")[:-1]


class Again(NamedTuple):
    """Files that are others once more, by links of either kind.

    Attributes:
        number: how many.
        path, other: of the first.
    """

    number: int
    path: str
    other: str


class Tree:
    """Folders as they were when they were read: each real one is read once, whatever the paths to it.

    What begins with a dot is ignored, and so is what systems leave behind (`__MACOSX`, `@eaDir`, `Thumbs.db`).
    """

    def __init__(self, found: Callable[[int], None] = lambda files: None) -> None:
        """Nothing is known yet.

        Args:
            found: called with the number of files of each folder that is read.
        """
        self._listed, self._ids = PackedPaths.pack(()), np.empty(0, np.uint64)
        self._places: dict[Hashable, range] = {}
        self._known: dict[Id, _Content | OSError] = {}
        self._found = found

    def subfolders(self, path: str) -> list[str]:
        """Names of the folders in a folder, sorted, links among them.

        Raises:
            OSError: it cannot be read.
        """
        content = self._read(path)
        return sorted([*content.folders, *content.links])

    def direct_files(self, path: str) -> PackedPaths:
        """Paths of the files in a folder, sorted.

        Raises:
            OSError: it cannot be read.
        """
        return PackedPaths.in_folders([(path, self._read(path).names)])

    def files_below(self, path: str, most_folders: int | None = None, strict: bool = False) -> Iterator[str]:
        """Paths of the files in a folder and below, which is read no further than they are asked for; links last.

        Args:
            path: of the folder.
            most_folders: after so many folders it ends.
            strict: a folder that cannot be read is an error; it is passed over otherwise.

        Raises:
            OSError: a folder cannot be read, and `strict`.
        """
        seen = lineage(os.path.dirname(path))
        folders, links = deque([path]), deque[str]()
        for number in count():
            if number == most_folders or not (folders or links):
                return
            path = (folders or links).popleft()
            try:
                here = identity(path)
                if here in seen:
                    continue
                seen.add(here)
                content = self._read(path)
            except OSError:
                if strict:
                    raise
                continue
            yield from (os.path.join(path, name) for name in content.files)
            folders.extend(os.path.join(path, name) for name in content.folders)
            links.extend(os.path.join(path, name) for name in content.links)

    def take(self, path: str) -> _Content:
        """What lies in a folder, which is forgotten: the names of a large data set take much memory."""
        content = self._read(path)
        self._known.pop(identity(path), None)
        return content

    def list(self, files: PackedPaths, ids: Iterable[bytes], places: Mapping[Any, range]) -> None:
        """Remember what `list_files` has found: files, their ids, and the places of those of each start."""
        self._listed, self._ids = files, np.frombuffer(b"".join(ids), np.uint64)
        self._places = dict(places)

    def again(self, starts: Iterable[Hashable], others: Iterable[Hashable] | None = None) -> Again | None:
        """Files of some starts that are files of others as well; without others, of these once more.

        Nobody is asked for more than a few: folders tell numbers of files.

        Args:
            starts, others: by the keys of `list_files`.
        """
        mine, ids = self._of(starts), self._ids
        theirs = mine if others is None else self._of(others)
        if others is None:
            found = np.sort(np.delete(mine, np.unique(ids[mine], return_index=True)[1]))
        else:
            found = mine[np.isin(ids[mine], ids[theirs])]
        for place in found[:_TRIED].tolist():
            path, other = self._listed[place], self._listed[theirs[np.argmax(ids[theirs] == ids[place])]]
            with suppress(OSError):
                if os.path.samefile(path, other):  # and no two of one number
                    return Again(len(found), path, other)
        return None

    def _of(self, starts: Iterable[Hashable]) -> np.ndarray:
        places = [self._places[start] for start in starts]
        return np.concatenate([np.empty(0, np.int64), *(np.arange(of.start, of.stop) for of in places)])

    def _read(self, path: str) -> _Content:
        here = identity(path)
        if here not in self._known:
            try:
                read = self._known[here] = _read_folder(path)
                self._found(read.names.count(b"\0"))
            except OSError as error:
                self._known[here] = error
        content = self._known[here]
        if isinstance(content, OSError):
            raise OSError(content.errno, content.strerror, path)
        return content


def _read_folder(path: str) -> _Content:
    files: dict[str, int] = {}  # to what tells the real ones apart
    folders: list[str] = []
    links: list[str] = []
    device = _of_device(os.stat(path).st_dev)
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            if entry.is_file(follow_symlinks=False):
                if name.lower() not in _LITTER_FILES:
                    files[name] = device ^ entry.inode()
            elif is_folder(entry):
                if name.lower() not in _LITTER:
                    (links if entry.is_symlink() else folders).append(name)
            elif name.lower() not in _LITTER_FILES:
                files[name] = _linked(entry)
    names = sorted(files)
    ids = array("Q", map(files.__getitem__, names)).tobytes()
    return _Content(os.fsencode("".join(f"{name}\0" for name in names)), ids, sorted(folders), sorted(links))


def _of_device(number: int) -> int:
    """What numbers of files (64 bits) are combined with, so that those of several devices differ."""
    return number << 40 & (1 << 64) - 1


def _linked(entry: os.DirEntry[str]) -> int:
    """What tells the file to which a link leads from others; that has been asked for already."""
    try:
        status = entry.stat()
        return _of_device(status.st_dev) ^ status.st_ino
    except OSError:  # it leads nowhere
        return entry.inode()


def list_files(
    roots: Iterable[str], starts: Mapping[_Key, str], tree: Tree | None = None
) -> tuple[dict[_Key, PackedPaths], list[tuple[str, str]]]:
    """List the files in some folders and below. What a `Tree` ignores is ignored.

    Links to folders are followed after all that lies there under its own name, each real folder once; so is none that
    leads up to a folder in which it lies, or to `roots` and above. A data set is therefore never counted twice, and
    links in circles end. No start is entered from another one that is a link to a folder above it.

    Args:
        roots: folders that make up the data set.
        starts: the folders to list, by any key; a link among them is followed like others.
        tree: what is known of the folders already; it forgets what is listed.

    Returns:
        The files of every start, sorted, and (path, reason) of every folder that was not entered.
    """
    tree = tree or Tree()
    read: dict[_Key, list[tuple[str, bytes]]] = {key: [] for key in starts}
    ids: dict[_Key, list[bytes]] = {key: [] for key in starts}
    left_out: list[tuple[str, str]] = []
    above = {folder for root in roots for folder in lineage(root)}
    seen: dict[Id, str] = {}
    pending: deque[tuple[_Key, str]] = deque()
    links: deque[tuple[_Key, str]] = deque()

    def enter(path: str, is_link: bool) -> bool:
        """Whether its files are to be listed from here; from then on they are from nowhere else."""
        try:
            here = identity(path)
            if here in seen or (is_link and here in above):
                what = f"{LINK} to" if is_link else SAME
                other = seen.get(here, os.path.realpath(path))
                left_out.append((path, f"{what} {other}, which is in the data set already"))
                return False
            if is_link and here in lineage(os.path.dirname(path)):
                left_out.append((path, f"{LINK} up to {os.path.realpath(path)}, in which it lies"))
                return False
        except OSError as error:
            left_out.append((path, f"{FOLDER_UNREADABLE}: {error.strerror}"))
            return False
        seen[here] = path
        return True

    def descend(entered: deque[tuple[_Key, str]]) -> None:
        while entered:
            key, path = entered.popleft()
            try:
                content = tree.take(path)
            except OSError as error:
                left_out.append((path, f"{FOLDER_UNREADABLE}: {error.strerror}"))
                continue
            read[key].append((path, content.names))
            ids[key].append(content.ids)
            links.extend((key, os.path.join(path, name)) for name in content.links)
            below = [os.path.join(path, name) for name in content.folders]
            entered.extend((key, folder) for folder in below if enter(folder, False))

    # All starts of a kind are entered before what lies below any: one may be a folder within another.
    for are_links in (False, True):
        for start in starts.items():
            if os.path.islink(start[1]) == are_links and enter(start[1], are_links):
                pending.append(start)
        descend(pending)
    while links:
        key, path = links.popleft()
        if enter(path, True):
            pending.append((key, path))
            descend(pending)
    # One table for all, which those who put the parts together go on sharing.
    everything = PackedPaths.in_folders([folder for folders in read.values() for folder in folders])
    files, places, begin = {}, {}, 0
    for key, folders in read.items():
        end = begin + sum(names.count(b"\0") for _, names in folders)
        found = everything[begin:end]
        places[key] = range(begin, end)
        files[key], begin = found.take(found.in_order()), end
    tree.list(everything, chain.from_iterable(ids.values()), places)
    return files, left_out


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False

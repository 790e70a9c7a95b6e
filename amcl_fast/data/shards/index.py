"""What is in a tar of samples, and which of its images can be used: found once, kept in the cache.

A sample is what has the same name up to the first dot after the last slash, WebDataset's rule. Its image is the member
that is named like one; its label stands in KEY.cls. Neither torch nor numpy is imported here.
"""

import hashlib
import itertools
import json
import os
import re
import stat
from array import array
from dataclasses import dataclass, field

from amcl_fast.data.processes.serving import serve_jobs
from amcl_fast.data.scan.headers import IMAGE_NAMES, BadImage, Look, Sight, check_size, look, unreadable
from amcl_fast.data.scan.largest import Largest
from amcl_fast.data.scan.limits import Limits
from amcl_fast.data.shards.tar import Entry, TarError, compression, entries
from amcl_fast.left_out import SECOND

_MAGIC = b"amcl-fast index 2\n"
_DIGEST = 16
_WINDOW = 4096  # bytes that are read at once: a header, the end of what is before it, the beginning of what follows
_KEY = re.compile(rb"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)
_LONGEST_LABEL = 64
_MOST_CLASSES = 1 << 31
NO_LABEL = -1

_IMAGES = {name[1:].encode() for name in IMAGE_NAMES}


@dataclass
class Index:
    """The usable images of a tar, in their order, and what is left out.

    Attributes:
        size: of the tar, bytes.
        mtime: ns.
        rests: of all images "OFFSET NUL LENGTH NUL NAME", one after the other (`locations`).
        lengths: of each of these, bytes, int32.
        labels: of each, int32; -1 without one.
        doubtful: places of those that only decoding can judge.
        left_out: (name, reason); without a name of the tar itself.
        not_numbers: names of the .cls that hold no class.
        largest: of the images, those included that only decoding can judge.
        lasting: whether the same would be found again as long as the tar does not change.
    """

    size: int = 0
    mtime: int = 0
    rests: bytearray = field(default_factory=bytearray)
    lengths: array = field(default_factory=lambda: array("i"))
    labels: array = field(default_factory=lambda: array("i"))
    doubtful: list[int] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    not_numbers: list[str] = field(default_factory=list)
    lasting: bool = True
    largest: Largest = field(default_factory=lambda: Largest([], []))

    def add(self, entry: Entry, label: int) -> None:
        rest = b"%d\0%d\0%s" % (entry.offset, entry.size, entry.name)
        self.rests += rest
        self.lengths.append(len(rest))
        self.labels.append(label)

    def drop(self, places: set[int]) -> None:
        """Take out the images at some places, and forget which are doubtful."""
        self.doubtful = []
        if not places:
            return
        ends = [0, *itertools.accumulate(self.lengths)]
        keep = [place for place in range(len(self.lengths)) if place not in places]
        self.rests = bytearray().join(self.rests[ends[place] : ends[place + 1]] for place in keep)
        self.lengths = array("i", [self.lengths[place] for place in keep])
        self.labels = array("i", [self.labels[place] for place in keep])

    def encoded(self) -> bytes:
        """As `decoded` reads it."""
        largest = [list(most) for most in self.largest]
        others = [self.size, self.mtime, self.doubtful, self.left_out, self.not_numbers, self.lasting, largest]
        told = json.dumps([len(self.lengths), len(self.rests), *others]).encode()
        body = told + b"\n" + self.lengths.tobytes() + self.labels.tobytes() + self.rests
        return _MAGIC + hashlib.blake2b(body, digest_size=_DIGEST).digest() + body

    @classmethod
    def decoded(cls, content: bytes) -> "Index":
        """What `encoded` wrote.

        Raises:
            ValueError: it is not that.
        """
        body = content[len(_MAGIC) + _DIGEST :]
        digest = hashlib.blake2b(body, digest_size=_DIGEST).digest()
        if content[: len(_MAGIC) + _DIGEST] != _MAGIC + digest:
            raise ValueError("no index of a tar")
        told, _, rest = body.partition(b"\n")
        count, length, size, mtime, doubtful, left_out, not_numbers, lasting, largest = json.loads(told)
        lengths, labels = array("i"), array("i")
        columns = count * lengths.itemsize
        lengths.frombytes(rest[:columns])
        labels.frombytes(rest[columns : 2 * columns])
        rests = bytearray(rest[2 * columns :])
        if not len(lengths) == len(labels) == count or len(rests) != length:
            raise ValueError("no index of a tar")
        pairs = [(name, reason) for name, reason in left_out]
        most = Largest(*(array("q", some) for some in largest))  # of thousands of tars, together
        return cls(size, mtime, rests, lengths, labels, doubtful, pairs, not_numbers, lasting, most)


class _Window:
    """Reads a file in pieces large enough for what is asked of the same place next."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._start, self._content = 0, b""

    def __call__(self, at: int, count: int) -> bytes:
        place = at - self._start
        if not 0 <= place <= place + count <= len(self._content):
            self._start, self._content = at, os.pread(self._descriptor, max(count, _WINDOW), at)
            place = 0
        return self._content[place : place + count]


def index(path: str, limits: Limits) -> Index:
    """Find the samples of a tar, and judge their images by their headers and ends.

    A tar that cannot be read is one without images, and says why.
    """
    found = Index()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            found.size, found.mtime = status.st_size, status.st_mtime_ns
            _find(_Window(descriptor), status, found, limits)
        finally:
            os.close(descriptor)
    except OSError as error:
        found.left_out.append(("", str(unreadable(path, error))))
        found.lasting = False
    return found


def _find(read: _Window, status: os.stat_result, found: Index, limits: Limits) -> None:
    if not stat.S_ISREG(status.st_mode):
        found.left_out.append(("", "not a regular file"))
        return
    if packed := compression(read(0, 8)):
        found.left_out.append(("", f"compressed by {packed}: unpack it to a .tar, in which images have a place"))
        return
    images: dict[bytes, list[tuple[bool, Entry]]] = {}
    labels: dict[bytes, int] = {}
    problem = None
    try:
        for entry in entries(read, status.st_size):
            if not (match := _KEY.fullmatch(entry.name)):
                continue
            key, ending = match[1], match[2].lower()
            if ending == b"cls":
                _read_label(read, key, entry, labels, found)
            elif ending.rpartition(b".")[2] in _IMAGES:
                images.setdefault(key, []).append((b"." in ending, entry))
    except TarError as error:
        problem = f"damaged: {error}; what follows is not used"
    # The one that is named KEY.jpg goes before KEY.mask.png, whichever comes first.
    chosen = {key: min(named, key=lambda image: (image[0], image[1].offset)) for key, named in images.items()}
    pixels, sizes = array("q"), array("q")
    for key, (_, entry) in sorted(chosen.items(), key=lambda item: item[1][1].offset):
        if sight := _judge(read, entry, labels.get(key, NO_LABEL), found, limits):
            pixels.append(sight.width * sight.height)
            sizes.append(entry.size)
    found.largest = Largest.of(pixels, sizes)
    for key, named in images.items():
        compound, entry = chosen[key]
        for other in named:
            if other[1] is not entry and other[0] == compound:
                found.left_out.append((_text(other[1]), f"{SECOND}: {_text(entry)}"))
    if problem:
        found.left_out.append(("", problem))
    elif not images:
        found.left_out.append(("", "it holds no image" if status.st_size else "empty file"))


def _read_label(read: _Window, key: bytes, entry: Entry, labels: dict[bytes, int], found: Index) -> None:
    try:
        if entry.problem or entry.size > _LONGEST_LABEL:
            raise ValueError
        label = int(read(entry.offset, entry.size))
        if not -1 <= label < _MOST_CLASSES:
            raise ValueError
        labels.setdefault(key, label)
    except ValueError:
        found.not_numbers.append(_text(entry))


def _judge(read: _Window, entry: Entry, label: int, found: Index, limits: Limits) -> Sight | None:
    """Add an image, or say why it is left out; returns what a look at it has found."""
    try:
        if entry.problem:
            raise BadImage(entry.problem)
        check_size(entry.size, limits)
        entry.name.decode()

        def within(at: int, count: int) -> bytes:
            return read(entry.offset + at, max(min(count, entry.size - at), 0))

        sight = look(within, entry.size, limits)
        if sight.looks is not Look.WHOLE:
            found.doubtful.append(len(found.lengths))
        found.add(entry, label)
        return sight
    except BadImage as bad:
        found.left_out.append((_text(entry), str(bad)))
    except UnicodeDecodeError:
        found.left_out.append((_text(entry), "its name is not valid UTF-8"))
    return None


def _text(entry: Entry) -> str:
    return os.fsdecode(entry.name)


def main(arguments: list[str]) -> None:
    """Serve a pool, with limits as arguments: the path of a tar in, its index out."""
    limits = Limits.of(arguments)
    serve_jobs(lambda path: index(os.fsdecode(path), limits).encoded())

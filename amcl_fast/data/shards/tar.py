"""The headers of a tar, read a few hundred bytes at a time: Python's own reader takes ten times as long.

ustar, GNU's and pax's are understood, as POSIX.1-2017 and tar(5) describe them. Neither torch nor numpy is imported.
"""

import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

BLOCK = 512

Read = Callable[[int, int], bytes]
"""`read(at, count)`: bytes of a tar; fewer, or none, beyond its end."""

_ZEROS = bytes(BLOCK)
_SPACES = 8 * ord(" ")
_ADLER = 65521
_FILES = b"0\0" + b"7"
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL, _SPARSE = b"L", b"K", b"x", b"g", b"S"
_LINKS = b"12"
_MOST_EXTENDED = 1 << 20  # bytes of a name or of a pax header

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"\x04\x22\x4d\x18": "LZ4",
}


class TarError(ValueError):
    """What stands at a place of a tar is no header."""


class Entry(NamedTuple):
    """A file in a tar.

    Attributes:
        name: as it stands there.
        offset: of its first byte.
        size: bytes.
        problem: why its bytes are not all there, None if they may be.
    """

    name: bytes
    offset: int
    size: int
    problem: str | None = None


def entries(read: Read, size: int) -> Iterator[Entry]:
    """The files of a tar of `size` bytes, in their order. What is no file is passed over, but for links.

    Raises:
        TarError: a header is damaged or cut off; the files before it have come. The message says where.
    """
    position = 0
    name: bytes | None = None
    given: dict[bytes, bytes] = {}
    everywhere: dict[bytes, bytes] = {}
    while position < size:
        block = read(position, BLOCK)
        if block == _ZEROS:
            return
        length, kind = header(block, position)
        content, position = position + BLOCK, position + BLOCK + -(-length // BLOCK) * BLOCK
        if kind in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL):
            if length > _MOST_EXTENDED or len(extended := read(content, length)) < length:
                raise TarError(f"no header at byte {content - BLOCK:,}")
            if kind == _LONG_NAME:
                name = extended.rstrip(b"\0")
            elif kind != _LONG_LINK:
                (given if kind == _PAX else everywhere).update(_records(extended, content))
            continue
        fields = {**everywhere, **given}
        name, path = None, name if name is not None else fields.get(b"path", header_name(block))
        if b"size" in fields:
            length = _decimal(fields[b"size"], content)
            position = content + -(-length // BLOCK) * BLOCK
        given = {}
        if kind == _SPARSE or any(field.startswith(b"GNU.sparse.") for field in fields):
            yield Entry(path, content, 0, "a sparse file, whose bytes are not all in the tar")
            position = _after_sparse(read, block, position) if kind == _SPARSE else position
        elif kind in _LINKS:
            yield Entry(path, content, 0, "a link within the tar")
        elif kind in _FILES and not path.endswith(b"/"):
            cut = content + length > size
            yield Entry(path, content, length, "truncated: the tar ends within it" if cut else None)


def header(block: bytes, at: int = 0) -> tuple[int, bytes]:
    """Size and kind of the file of which this is the header.

    Raises:
        TarError: it is none; the message says that it is `at` this byte.
    """
    try:
        if len(block) < BLOCK:
            raise ValueError
        told = int(block[148:156].strip(b" \0"), 8)
        # Adler-32 has the sum of the bytes in its lower half, a hundred times as fast as Python adds them up.
        if zlib.adler32(block) & 0xFFFF != (1 + told - _SPACES + sum(block[148:156])) % _ADLER:
            raise ValueError
        return _number(block[124:136]), block[156:157]
    except ValueError:
        raise TarError(f"no header at byte {at:,}") from None


def compression(head: bytes) -> str | None:
    """How what begins with these bytes is compressed; None if it is not."""
    return next((name for magic, name in _COMPRESSED.items() if head.startswith(magic)), None)


def _number(field: bytes) -> int:
    if field[0] == 0x80:  # GNU's for what octal digits have no room for
        return int.from_bytes(field[1:], "big")
    number = int(field.strip(b" \0") or b"0", 8)
    if number < 0:
        raise ValueError
    return number


def header_name(block: bytes) -> bytes:
    """The name in a header; of a long one, or one that is not ASCII, it may be no more than the beginning."""
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and (prefix := block[345:500].split(b"\0", 1)[0]):
        return prefix + b"/" + name
    return name


def _records(extended: bytes, at: int) -> dict[bytes, bytes]:
    """What a pax header says: lines "LENGTH KEYWORD=VALUE", whose length counts all of the line."""
    found, position = {}, 0
    while position < len(extended) and extended[position]:
        length, space, _ = extended[position : position + 20].partition(b" ")
        end = position + _decimal(length, at)
        record = extended[position + len(length) + 1 : end]
        keyword, equals, value = record.partition(b"=")
        if not (space and equals and record.endswith(b"\n")) or end > len(extended):
            raise TarError(f"no header at byte {at - BLOCK:,}")
        found[keyword] = value[:-1]
        position = end
    return found


def _decimal(text: bytes, at: int) -> int:
    if not text.isdigit():
        raise TarError(f"no header at byte {at - BLOCK:,}")
    return int(text)


def _after_sparse(read: Read, block: bytes, position: int) -> int:
    """Where the next header is; GNU's lists of holes go on in blocks of their own before the content."""
    more = block[482]
    while more:
        following = read(position, BLOCK)
        if len(following) < BLOCK:
            break
        more, position = following[504], position + BLOCK
    return position

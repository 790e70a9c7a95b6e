"""Files of arrays, mapped where processes of a machine are to share one copy of them.

What lies there may be damaged, of another program or of another version: nothing of it is believed before its digest
agrees, and nothing of it is ever executed.
"""

import hashlib
import json
import mmap
import os
import stat
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

_MAGIC = b"amcl_fast arrays\0\1\r\n"
_DIGEST = 32
_ALIGNED = 64


class Encoded(NamedTuple):
    """The content of a file.

    Attributes:
        pieces: of which it is made.
        digest: tells it from any other, in 64 hexadecimal digits.
    """

    pieces: list[bytes | memoryview]
    digest: str


def encode(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Encoded:
    """What to write.

    Args:
        header: whatever JSON can hold.
        arrays: of integers, of one dimension, by name; they are not copied.
    """
    places: dict[str, list[Any]] = {}
    parts: list[bytes | memoryview] = []
    at = 0
    for name, array in arrays.items():
        content = np.ascontiguousarray(array).view(np.uint8).data
        places[name] = [array.dtype.str, at, len(array)]
        parts += [content, bytes(-len(content) % _ALIGNED)]
        at += len(content) + len(parts[-1])
    text = json.dumps([header, places]).encode()
    text += b" " * (-(len(_MAGIC) + _DIGEST + 8 + len(text)) % _ALIGNED)
    parts = [len(text).to_bytes(8, "little"), text, *parts]
    digest = _digest(parts)
    return Encoded([_MAGIC, digest, *parts], digest.hex())


def read(path: str | os.PathLike[str], *, copied: bool = False) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays of a file that `encode` made; the arrays are mapped and cannot be written.

    Args:
        path: of the file.
        copied: into memory, instead of mapped: a file that another machine replaces is gone from a network folder,
            and a process that touches what it has mapped of it ends by SIGBUS.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file, or damaged.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size < len(_MAGIC) + _DIGEST + 8:
            raise ValueError(f"{path} is no file of arrays")
        if copied:
            with open(descriptor, "rb", closefd=False) as file:
                whole: bytes | mmap.mmap = file.read()
        else:
            whole = mmap.mmap(descriptor, status.st_size, prot=mmap.PROT_READ)
    finally:
        os.close(descriptor)
    body = len(_MAGIC) + _DIGEST
    view = memoryview(whole)
    if view[: len(_MAGIC)] != _MAGIC or view[len(_MAGIC) : body] != _digest([view[body:]]):
        raise ValueError(f"{path} is no file of arrays, or damaged")
    try:
        first = body + 8 + int.from_bytes(view[body : body + 8], "little")
        header, places = json.loads(bytes(view[body + 8 : first]))
        kinds = {name: np.dtype(str(kind)) for name, (kind, _, _) in places.items()}
        if any(kinds[name].kind not in "iu" or at < 0 or count < 0 for name, (_, at, count) in places.items()):
            raise ValueError("its arrays are not of integers")
        arrays = {
            name: np.frombuffer(whole, kinds[name], count, first + at) if count else np.empty(0, kinds[name])
            for name, (_, at, count) in places.items()
        }
        return dict(header), arrays
    except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{path} is no file of arrays: {error}") from None


def _digest(pieces: Iterable[bytes | memoryview]) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST)
    for piece in pieces:
        digest.update(piece)
    return digest.digest()

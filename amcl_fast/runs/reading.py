"""Files that anybody may have written, cut off or replaced: read whole and checked, or one error that says why not.

Whoever reads a file of a run, a study, a benchmark or the cache calls this module. Only a regular file is opened, and
nothing waits for a writer; what it costs in memory is bounded; its values are of the types that are asked for. The
error is `DamagedError`, in one line with the file's name; that a file is missing, or unreadable here, stays an OSError.
"""

import errno
import json
import math
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any, BinaryIO, Union, get_args, get_origin, get_type_hints, is_typeddict

from ..setting_types import fits, in_words, shown

MOST_BYTES = 1 << 24
"""Of a JSON file: those of a run have 10 kB, those of studies and benchmarks half a megabyte."""

MOST_LEVELS = 40
"""Of mappings and lists in each other: those of this package have 8."""

_LONGEST = 300
"""Characters of what others say: torch names all weights that a file lacks."""

_MOST_DIGITS = 19
"""Of a whole number: what 64 bits hold."""


class DamagedError(ValueError):
    """A file does not hold what it must. The message is one line that names the file and says what is wrong."""


class LimitError(DamagedError):
    """It is larger or deeper than any that this package writes, or no regular file: nobody has damaged it by chance."""


def damaged(path: Path, why: object, kind: type[DamagedError] = DamagedError) -> DamagedError:
    """The error of a file, in one line."""
    return kind(f"{path} is damaged: {' '.join(str(why).split()) or type(why).__name__}")


@contextmanager
def naming(path: Path, what: str = "is damaged") -> Iterator[None]:
    """Whatever a block fails of that works on the content of a file is that file's damage.

    For readers whose errors are of many kinds, and for content that is of the right types and makes no sense.

    Args:
        path: of the file.
        what: is to be said of it.

    Raises:
        DamagedError: instead of any other error, but those that name the file.
    """
    try:
        yield
    except (DamagedError, ImportError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError | ValueError) and str(path) in str(error):
            raise
        told = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:_LONGEST]
        raise DamagedError(f"{path} {what}: {told or type(error).__name__}") from error


@contextmanager
def opened(path: Path, most: int) -> Iterator[BinaryIO]:
    """A file, open to read in binary.

    Args:
        path: of it; a link to it is followed.
        most: bytes that it may have.

    Raises:
        LimitError: it is no regular file, or larger.
        DamagedError: it is a link that leads nowhere.
        OSError: there is none, or it cannot be read.
    """
    try:
        # Not blocking: opening a FIFO would wait for somebody to write into it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP) or not os.path.islink(path):
            raise
        raise damaged(path, "the link leads nowhere") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise damaged(path, "it must be a regular file", LimitError)
        if status.st_size > most:
            raise damaged(path, f"it must have at most {most:,} bytes, got {status.st_size:,}", LimitError)
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a file.

    Raises:
        DamagedError, OSError: as `opened`.
    """
    with opened(path, most) as file:
        return file.read(most)


def read_utf8(path: Path, most: int = MOST_BYTES, *, errors: str = "strict") -> str:
    """The content of a file of UTF-8; `errors` as `bytes.decode` takes them.

    Raises:
        DamagedError: as `opened`, or it is no UTF-8.
        OSError: as `opened`.
    """
    try:
        return read_bytes(path, most).decode(errors=errors)
    except UnicodeDecodeError as error:
        raise damaged(path, f"it is not UTF-8 ({error.reason} at byte {error.start})") from None


def read_json(path: Path, shape: Any = dict[str, Any], most: int = MOST_BYTES, *, finite: bool = True) -> Any:
    """The value in a JSON file, such as JSON has it: finite, names once, of at most 19 digits and 40 levels.

    Args:
        path: of the file.
        shape: its type, of what `misfit` knows.
        most: bytes that it may have.
        finite: else NaN and infinity are numbers too, as Python writes them.

    Raises:
        DamagedError: as `read_utf8`, it is no such JSON, or not of the shape.
        OSError: as `opened`.
    """
    text = read_utf8(path, most)
    try:
        numbers = {"parse_float": _finite, "parse_constant": _no_number} if finite else {"parse_float": float}
        value = json.loads(text, object_pairs_hook=_once, parse_int=_whole, **numbers)  # type: ignore[arg-type]
        _check_levels(value)
    except RecursionError:
        raise damaged(path, f"it must be at most {MOST_LEVELS} levels deep, got more") from None
    except ValueError as error:
        raise damaged(path, error) from None
    if problem := misfit(value, shape):
        raise damaged(path, problem)
    return value


def misfit(value: Any, shape: Any, name: str = "") -> str:
    """What of a value is not of a type: "NAME must be …, got …"; "" if nothing is.

    Args:
        value: of mappings, lists and plain values.
        shape: `fits`'s types, Any, unions of them, lists and dictionaries of them by text, and TypedDicts, beside whose
            names there may be others.
        name: of the value, with dots; "": it is the whole.
    """
    origin, args = get_origin(shape), get_args(shape)
    if shape is Any or (origin in (Union, UnionType) and not all(misfit(value, arg, name) for arg in args)):
        return ""
    below = f"{name}." if name else ""
    if is_typeddict(shape) and isinstance(value, dict):
        if lacking := sorted(shape.__required_keys__ - value.keys()):
            return f"it has no {below}{lacking[0]}"
        hints = {of: kind for of, kind in get_type_hints(shape).items() if of in value}
        return next(filter(None, (misfit(value[of], kind, f"{below}{of}") for of, kind in hints.items())), "")
    if origin is dict and isinstance(value, dict):
        return next(filter(None, (misfit(item, args[1], f"{below}{of}") for of, item in value.items())), "")
    if origin is list and isinstance(value, list):
        return next(filter(None, (misfit(item, args[0], f"{name}[{at}]") for at, item in enumerate(value))), "")
    if origin not in (dict, list) and not is_typeddict(shape) and fits(value, shape):
        return ""
    return f"{name or 'it'} must be {in_words(dict if is_typeddict(shape) else shape)}, got {shown(value)}"


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"it has {shown(twice)} twice")
    return value


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _whole(text: str) -> int:
    if len(text.lstrip("-")) > _MOST_DIGITS:
        raise ValueError(f"a whole number must have at most {_MOST_DIGITS} digits, got {shown(text)}")
    return int(text)


def _no_number(text: str) -> Any:
    raise ValueError(f"a number must be finite, got {shown(text)}")


def _check_levels(value: Any) -> None:
    """Raise ValueError for a value that is too deep, or text with halves of characters, which no file takes."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MOST_LEVELS:
            raise ValueError(f"it must be at most {MOST_LEVELS} levels deep, got more")
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str):
                check_text(item)
        level = below


def check_text(text: str) -> None:
    """Raise ValueError for text with halves of characters but those that stand for bytes of a file's name."""
    try:
        text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        raise ValueError(f"text must be of whole characters, got {ascii(text)[:80]}") from None

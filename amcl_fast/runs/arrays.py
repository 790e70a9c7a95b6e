"""Records of arrays, dataclasses, in files of NumPy."""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import numpy as np

from .files import write_file
from .in_place import make_within
from .reading import damaged, naming, opened

_MOST_PACKED, _MOST_BYTES = 1 << 26, 1 << 28
"""Of a file, and of its arrays: those of a run have 100 kB and 10 MB."""

_LARGEST = {"C": 1000, "P": 100, "Q": 20, "K": 20, "R": 20}
"""What a size may be at most, since so much would be drawn; a run has tens at most."""

_FILLED = "CNM"
"""Sizes that are not 0."""

_LONGEST_TEXT = 1000


def save_arrays(record: Any, path: Path) -> None:
    """Write a record as .npz; the file appears when it is whole. Its folder is made, those above are not.

    Raises:
        OSError: it cannot be written.
    """
    make_within(path.parents[1], path.parent)
    arrays = {field.name: getattr(record, field.name) for field in fields(record)}
    write_file(path, lambda file: np.savez_compressed(file, **arrays))


def read_arrays(kind: Any, path: Path) -> dict[str, Any]:
    """Fields of a record as `save_arrays` wrote them; one with a default may be missing.

    Every array is of the type and of the shape that its field says, and finite.

    Args:
        kind: the dataclass; its fields are of plain types, or annotated by a shape: numbers, letters that stand for the
            same number in all fields, `1+K` for one more; `|` between shapes of which it has one.
        path: of the file.

    Raises:
        FileNotFoundError: no such file.
        DamagedError: the file is none of these.
    """
    hints = get_type_hints(kind, include_extras=True)
    sizes: dict[str, int] = {}
    found: dict[str, Any] = {}
    with opened(path, _MOST_PACKED) as file, naming(path), zipfile.ZipFile(file) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        if sum(member.file_size for member in members.values()) > _MOST_BYTES:
            raise damaged(path, f"its arrays must have at most {_MOST_BYTES:,} bytes, got more")
        for of in fields(kind):
            if of.name not in members:
                if of.default is MISSING and of.default_factory is MISSING:
                    raise damaged(path, f"it has no {of.name}")
                continue
            array = _read(archive, members[of.name])
            if problem := _misfit(array, hints[of.name], sizes):
                raise damaged(path, f"{of.name} must be {problem}")
            found[of.name] = array if get_origin(hints[of.name]) is Annotated else array.item()
    return found


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """An array of an archive, which takes as much memory as the archive says."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename} is packed as NumPy packs nothing")
    with archive.open(member) as file:
        content = file.read(member.file_size + 1)  # a size tells it to unpack no more
    file = io.BytesIO(content)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, _, dtype = read_header[np.lib.format.read_magic(file)](file)
    if dtype.hasobject or min(shape, default=0) < 0 or _bytes(shape, dtype) != len(content) - file.tell():
        raise ValueError(f"{member.filename} has other content than it says")
    return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)


def _bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    count = dtype.itemsize
    for size in shape:
        count *= size
    return count


def _misfit(array: np.ndarray, hint: Any, sizes: dict[str, int]) -> str:
    """What an array must be and is not; `sizes` gets the numbers that letters stand for."""
    kind, shape = get_args(hint) if get_origin(hint) is Annotated else (hint, "")
    dtype = np.dtype(get_args(get_args(kind)[1])[0] if shape else kind)
    same = array.dtype == dtype if dtype.kind == "u" else array.dtype.kind in {"i": "iu"}.get(dtype.kind, dtype.kind)
    if not same:
        return f"of {dtype.name}, got {array.dtype}"
    tried = (_fitting(array.shape, other.split(), sizes) for other in shape.split("|"))
    if (found := next((of for of in tried if of is not None), None)) is None:
        known = ", ".join(f"{letter} = {size}" for letter, size in sizes.items() if letter in shape)
        return f"of the shape ({', '.join(shape.split())}){known and f', {known}'}, got {array.shape}"
    sizes |= found
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return "finite, got NaN or infinity among it"
    if array.dtype.kind == "U" and (array.dtype.itemsize > 4 * _LONGEST_TEXT or "\0" in "".join(array.ravel())):
        return f"text of at most {_LONGEST_TEXT:,} characters, got {array.dtype}"
    return ""


def _fitting(shape: tuple[int, ...], named: list[str], known: Mapping[str, int]) -> dict[str, int] | None:
    """What letters stand for in a shape; None if it is another one."""
    if len(shape) != len(named):
        return None
    found: dict[str, int] = {}
    for size, name in zip(shape, named, strict=True):
        *more, letter = name.split("+")
        size -= sum(map(int, more))
        if letter.isdecimal():
            if size != int(letter):
                return None
            continue
        filled = size >= (letter in _FILLED)
        if not filled or size > _LARGEST.get(letter, size) or {**known, **found}.get(letter, size) != size:
            return None
        found[letter] = size
    return found

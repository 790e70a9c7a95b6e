"""Lists of files: a path a line, or a table of paths and labels (docs/data.md has the format)."""

import csv
import os
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from amcl_fast.data.packed_paths import PackedPaths
from amcl_fast.data.scan.check import check_files
from amcl_fast.data.scan.images import composed
from amcl_fast.data.scan.limits import DEFAULT_LIMITS, Limits
from amcl_fast.data.shards.patterns import is_tar, refuse_compressed
from amcl_fast.data.sources.numbered import Found
from amcl_fast.left_out import few

_PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img_path")
_LABEL_COLUMNS = ("label", "class", "target", "class_name", "class_id", "class_index")
# A path with an ending, and an integer.
_NUMBERED = re.compile(r".*\S\.\w+[ \t]+-?[0-9]+")
_INTEGER = re.compile(r"-?[0-9]+")
_TABLES = {".csv": ",", ".tsv": "\t"}
_LARGEST_NUMBER = 1 << 31

_Row = tuple[int, str, str]
"""Number of a line, path and label as they stand there."""


@dataclass
class Listed:
    """What a list says, as it stands there.

    Attributes:
        paths: absolute.
        names: the labels, in the order in which they occur, after "" for none.
        labels: (n,) int32, place in `names` of each path's.
        lines: (n,) int32, the number of the line of each, from 1 on.
        tars: whether they are tars.
    """

    paths: PackedPaths
    names: list[str]
    labels: np.ndarray
    lines: np.ndarray
    tars: bool


def read_lines(file: str) -> Listed:
    """Read a list.

    Raises:
        ValueError: a line cannot be understood, or tars and images are mixed; the message has its number.
        OSError: the file cannot be read.
    """
    kind = os.path.splitext(file)[1].lower()
    rows = _table(file, _TABLES[kind]) if kind in _TABLES else _plain(file)
    folder = os.path.dirname(os.path.abspath(file))
    names, codes, labels, lines = [""], {"": 0}, array("i"), array("i")
    tars = False

    # A million paths are never there as strings at once.
    def paths() -> Iterator[str]:
        nonlocal tars
        for number, path, label in rows:
            path = _absolute(path, folder)
            refuse_compressed([path])
            if not lines:
                tars = is_tar(path)
            elif is_tar(path) != tars:
                raise ValueError(f"{file}, line {number}: a list must be of tars or of images alone, got both: {path}")
            code = codes.setdefault(composed(label), len(names))
            if code == len(names):
                names.append(label)
            labels.append(code)
            lines.append(number)
            yield path

    try:
        packed = PackedPaths.pack(paths())
    except UnicodeDecodeError:
        raise _undecodable(file) from None
    if not packed:
        raise ValueError(f"{file} must list files, got no line with a path")
    return Listed(packed, names, np.frombuffer(labels, np.int32), np.frombuffer(lines, np.int32), tars)


def read_list(file: str, listed: Listed, tell: bool = True, limits: Limits = DEFAULT_LIMITS) -> Found:
    """The usable images of a list, in its order. A line that is there already is passed over, and told.

    Args:
        file: the list.
        listed: what it says.
        tell: show how far it has come, should it take long.
        limits: what is too large.

    Raises:
        ValueError: two lines give a file different labels, or a label is no class.
    """
    again = _repeated(file, listed)
    notes = []
    if again:
        lines = few(map(str, listed.lines[again].tolist()))
        notes.append(f"{len(again):,} line(s) of {file} repeat others and are passed over: {lines}")
    names, numbers = _numbered(file, listed)
    places = np.delete(np.arange(len(listed.paths)), again)
    files = listed.paths.take(places).compact() if again else listed.paths
    judged = check_files(os.path.abspath(file), {"": files}, tell, limits)[""]
    good = np.delete(places, [*judged.bad])
    return Found(judged.good(), numbers[good], names.__getitem__, judged.largest, judged.left_out(), notes)


def _repeated(file: str, listed: Listed) -> list[int]:
    """Places of the lines whose path an earlier one has.

    Raises:
        ValueError: with another label.
    """
    hashes = np.fromiter(map(hash, listed.paths), np.int64, len(listed.paths))
    order = np.argsort(hashes)
    same = np.diff(hashes[order]) == 0
    first: dict[str, int] = {}
    again = []
    for place in np.sort(order[np.append(False, same) | np.append(same, False)]).tolist():
        path = listed.paths[place]
        if (known := first.setdefault(path, place)) != place:
            again.append(place)
            if listed.labels[known] != listed.labels[place]:
                label, earlier = (listed.names[listed.labels[where]] for where in (place, known))
                raise ValueError(
                    f"{file}, line {listed.lines[place]}: {path} has the label {label!r}, and {earlier!r} in line "
                    f"{listed.lines[known]}"
                )
    return again


def _numbered(file: str, listed: Listed) -> tuple[list[str], np.ndarray]:
    """Names of the classes, and the number of each path's, -1 without one. All integers are in numerical order."""
    names = listed.names[1:]
    if all(map(_INTEGER.fullmatch, names)):
        values = {}
        for code, name in enumerate(names, 1):
            # -1 is how tables say that there is none; 01 and 1 are one class.
            digits = name.lstrip("-0")
            value = -1 if name.startswith("-") and digits else int(digits[:20] or 0)
            if value >= _LARGEST_NUMBER:
                line = listed.lines[np.argmax(listed.labels == code)]
                given = name if len(name) <= 20 else f"{name[:20]}…"
                raise ValueError(
                    f"{file}, line {line}: a label that is a number must be below {_LARGEST_NUMBER:,}, got {given}"
                )
            values[name] = value
        order = sorted({value for value in values.values() if value >= 0})
        place = {value: number for number, value in enumerate(order)}
        numbers = [place.get(values[name], -1) for name in names]
        names = [str(value) for value in order]
    else:
        order_of = {name: number for number, name in enumerate(sorted(names))}
        numbers, names = [order_of[name] for name in names], [*order_of]
    return names, np.array([-1, *numbers], np.int32)[listed.labels]


def _absolute(path: str, folder: str) -> str:
    if not path.startswith("/"):
        path = os.path.expanduser(path) if path.startswith("~/") else f"{folder}/{path}"
    return path if "/." not in path and "//" not in path else os.path.normpath(path)


def _lines(file: str, newline: str) -> Iterator[str]:
    """Its lines, with their ends.

    Raises:
        UnicodeDecodeError: it is no UTF-8.
        ValueError: a line holds a NUL.
    """
    with open(file, encoding="utf-8-sig", newline=newline) as text:
        for number, line in enumerate(text, 1):
            if "\0" in line:
                raise ValueError(f"{file}, line {number}: a list must be text, got a NUL")
            yield line


def _undecodable(file: str) -> ValueError:
    """What is told of a file that is no UTF-8."""
    content = Path(file).read_bytes()
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return ValueError(f"{file}, line {line}: a list must be UTF-8 text: {error.reason}")
    return ValueError(f"{file} must not change while it is read")


def _plain(file: str) -> Iterator[_Row]:
    """Lines of a path; of a path, a tab and a label; or, if all are, of a path with an ending, a blank and a number."""

    def lines() -> Iterator[tuple[int, str]]:
        stripped = ((number, line.strip()) for number, line in enumerate(_lines(file, "\n"), 1))
        return ((number, line) for number, line in stripped if line and not line.startswith("#"))

    # A name may hold blanks and end in a number, but hardly all do behind what looks like an ending.
    numbered = all(_NUMBERED.fullmatch(line) for _, line in lines())
    for number, line in lines():
        path, label = line.rsplit(None, 1) if numbered else line.partition("\t")[::2]
        yield number, path.rstrip(), label.strip()


def _table(file: str, delimiter: str) -> Iterator[_Row]:
    """Rows of a CSV or TSV file with or without a header: the first column is the path, the second the label."""
    reader = csv.reader(_lines(file, ""), delimiter=delimiter, strict=True)
    columns = (0, 1)
    begun = False
    try:
        for row in reader:
            if not any(row):
                continue
            if not begun:
                begun = True
                if (header := _header(row)) is not None:
                    columns = header
                    continue
            if columns[0] >= len(row) or not (path := row[columns[0]].strip()):
                raise ValueError(f"{file}, line {reader.line_num}: no path in column {columns[0] + 1}, got {row}")
            label = row[columns[1]].strip() if 0 <= columns[1] < len(row) else ""
            yield reader.line_num, path, label
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num}: {error}") from None


def _header(row: list[str]) -> tuple[int, int] | None:
    """Columns of path and label, -1 without one, if a row names them."""
    names = [name.strip().lower() for name in row]
    path = next((names.index(name) for name in _PATH_COLUMNS if name in names), None)
    if path is None:
        return None
    return path, next((names.index(name) for name in _LABEL_COLUMNS if name in names), -1)

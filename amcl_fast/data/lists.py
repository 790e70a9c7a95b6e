"""Lists of files: a path a line, or a table of paths and labels (docs/data.md has the format)."""

import csv
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from amcl_fast.data.found import Found
from amcl_fast.data.left_out import few
from amcl_fast.data.packed import PackedPaths
from amcl_fast.data.patterns import is_tar, refuse_compressed
from amcl_fast.data.scan import check_files

_PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img_path")
_LABEL_COLUMNS = ("label", "class", "target", "class_name", "class_id", "class_index")
# A path with an ending, and an integer.
_NUMBERED = re.compile(r".*\S\.\w+[ \t]+-?[0-9]+")
_TABLES = {".csv": ",", ".tsv": "\t"}
_LARGEST_NUMBER = 1 << 31


@dataclass
class Listed:
    """What a list says, as it stands there.

    Attributes:
        paths: absolute.
        labels: of each; "" without one.
        lines: the number of the line of each, from 1 on.
    """

    paths: list[str]
    labels: list[str]
    lines: list[int]


def read_lines(file: str) -> Listed:
    """Read a list.

    Raises:
        ValueError: a line cannot be understood; the message has its number.
        OSError: the file cannot be read.
    """
    text = _text(file)
    kind = os.path.splitext(file)[1].lower()
    rows = _table(file, text, _TABLES[kind]) if kind in _TABLES else _plain(text)
    folder = os.path.dirname(os.path.abspath(file))
    listed = Listed([], [], [])
    for number, path, label in rows:
        if "\0" in path:
            raise ValueError(f"{file}, line {number}: a path holds no NUL, got {path!r}")
        path = (
            path if path.startswith("/") else os.path.expanduser(path) if path.startswith("~/") else f"{folder}/{path}"
        )
        listed.paths.append(path if "/." not in path and "//" not in path else os.path.normpath(path))
        listed.labels.append(label)
        listed.lines.append(number)
    if not listed.paths:
        raise ValueError(f"{file} must list files, got no line with a path")
    return listed


def read_list(file: str, listed: Listed, tell: bool = True) -> Found:
    """The usable images of a list, in its order. A line that is there already is passed over, and told.

    Args:
        file: the list.
        listed: what it says.
        tell: show how far it has come, should it take long.

    Raises:
        ValueError: two lines give a file different labels, or a label is no class.
    """
    first: dict[str, int] = {}
    again = []
    for place, path in enumerate(listed.paths):
        if (known := first.setdefault(path, place)) != place:
            again.append(place)
            if listed.labels[known] != listed.labels[place]:
                raise ValueError(
                    f"{file}, line {listed.lines[place]}: {path} has the label {listed.labels[place]!r}, and "
                    f"{listed.labels[known]!r} in line {listed.lines[known]}"
                )
    notes = []
    if again:
        lines = few(str(listed.lines[place]) for place in again)
        notes.append(f"{len(again):,} line(s) of {file} repeat others and are passed over: {lines}")
    names, numbers = _numbered(file, listed)
    judged = check_files(os.path.abspath(file), {"": PackedPaths.pack(first)}, tell)[""]
    places = np.delete(np.fromiter(first.values(), np.int64, len(first)), [*judged.bad])
    return Found(judged.good(), numbers[places], names.__getitem__, judged.left_out(), notes)


def holds_tars(file: str, listed: Listed) -> bool:
    """Whether a list is one of tars.

    Raises:
        ValueError: it has other files as well.
    """
    refuse_compressed(listed.paths)
    tars = [is_tar(path) for path in listed.paths]
    if any(tars) and not all(tars):
        line, other = listed.lines[tars.index(not tars[0])], listed.paths[tars.index(not tars[0])]
        raise ValueError(f"{file}, line {line}: a list must be of tars or of images alone, got both: {other}")
    return tars[0]


def _numbered(file: str, listed: Listed) -> tuple[list[str], np.ndarray]:
    """Names of the classes, and the number of each path's, -1 without one. All integers are in numerical order."""
    names = [name for name in dict.fromkeys(listed.labels) if name]
    if all(name.isascii() and name.lstrip("-").isdigit() for name in names):
        values = {name: int(name) for name in names}
        if any(value >= _LARGEST_NUMBER for value in values.values()):
            raise ValueError(
                f"{file}: a label that is a number must be below {_LARGEST_NUMBER:,}, got {max(values.values())}"
            )
        # -1 is how tables say that there is none; 01 and 1 are one class.
        order = sorted({value for value in values.values() if value >= 0})
        place = {value: number for number, value in enumerate(order)}
        of = {name: place.get(value, -1) for name, value in values.items()}
        names = [str(value) for value in order]
    else:
        names.sort()
        of = {name: number for number, name in enumerate(names)}
    of[""] = -1
    return names, np.fromiter((of[label] for label in listed.labels), np.int64, len(listed.labels))


def _text(file: str) -> str:
    content = Path(file).read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{file}, line {line}: a list must be UTF-8 text: {error.reason}") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{file}, line {line}: a list must be text, got a NUL")
    return text


def _plain(text: str) -> list[tuple[int, str, str]]:
    """Lines of a path; of a path, a tab and a label; or, if all are, of a path with an ending, a blank and a number."""
    stripped = ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1))
    lines = [(number, line) for number, line in stripped if line and not line.startswith("#")]
    # A name may hold blanks and end in a number, but hardly all do behind what looks like an ending.
    if all(_NUMBERED.fullmatch(line) for _, line in lines):
        lines = [(number, "\t".join(line.rsplit(None, 1))) for number, line in lines]
    parts = ((number, line.partition("\t")) for number, line in lines)
    return [(number, path.rstrip(), label.strip()) for number, (path, _, label) in parts]


def _table(file: str, text: str, delimiter: str) -> list[tuple[int, str, str]]:
    """Rows of a CSV or TSV file with or without a header: the first column is the path, the second the label."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, str, str]] = []
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
            rows.append((reader.line_num, path, label))
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num}: {error}") from None
    return rows


def _header(row: list[str]) -> tuple[int, int] | None:
    """Columns of path and label, -1 without one, if a row names them."""
    names = [name.strip().lower() for name in row]
    path = next((names.index(name) for name in _PATH_COLUMNS if name in names), None)
    if path is None:
        return None
    return path, next((names.index(name) for name in _LABEL_COLUMNS if name in names), -1)

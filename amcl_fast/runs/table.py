"""metrics.csv, read row by row: rows of as many fields as there are columns, or one error."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .reading import damaged, opened

_MOST_BYTES = 1 << 30
"""A million rows have half as many."""

_LONGEST_LINE, _MOST_COLUMNS = 1 << 20, 5000


class Table:
    """Rows of a file, once.

    Attributes:
        columns: names, all different, `step` among them.
        whole: whether the last line was; half a line counts for nothing. Known after the last row.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self.whole = True
        self._rows = csv.reader(self._lines(), strict=True)
        self.columns = next(self._fields(), [])
        names = self.columns
        if "step" not in names:
            raise damaged(path, f"it has no column 'step', its columns are {', '.join(names)[:80] or 'none'}")
        if len(names) > _MOST_COLUMNS:
            raise damaged(path, f"it must have at most {_MOST_COLUMNS:,} columns, got {len(names):,}")
        if len({*names}) < len(names) or "" in names:
            twice = next(name for name in names if not name or names.count(name) > 1)
            raise damaged(path, f"columns must have names of their own, got {twice[:80]!r} {names.count(twice)} times")

    def __iter__(self) -> Iterator[list[str]]:
        for row in self._fields():
            if len(row) != len(self.columns):
                line = self._rows.line_num
                raise damaged(self._path, f"line {line} has {len(row)} fields, of {len(self.columns)} columns")
            yield row

    def _fields(self) -> Iterator[list[str]]:
        try:
            yield from self._rows
        except csv.Error as error:
            raise damaged(self._path, f"line {self._rows.line_num}: {error}") from None

    def _lines(self) -> Iterator[str]:
        while line := self._file.readline(_LONGEST_LINE):
            if not line.endswith(b"\n"):
                if len(line) == _LONGEST_LINE:
                    raise damaged(self._path, f"a line must have at most {_LONGEST_LINE:,} bytes, got more")
                self.whole = False  # of a run that goes on, or was killed while it wrote
                return
            if b"\0" in line:
                raise damaged(self._path, "it holds NUL bytes, as what was never written to the disk")
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                raise damaged(self._path, f"it is not UTF-8 ({error.reason})") from None


@contextmanager
def read_table(path: Path) -> Iterator[Table]:
    """The table in a file, to be read within the block.

    Raises:
        DamagedError: as `opened`, or it is no table of metrics; of a row when it is read.
        OSError: as `opened`.
    """
    with opened(path, _MOST_BYTES) as file:
        yield Table(file, path)


def step_of(text: str, path: Path) -> float:
    """The step of a row; raises DamagedError if it is none."""
    value = number(text, path)
    if not (value.is_integer() and abs(value) < 2**53):  # a callback may log before the first step
        raise damaged(path, f"a step must be a whole number, got {text[:80]!r}")
    return value


def number(text: str, path: Path) -> float:
    """A value of a row, NaN and infinity too; raises DamagedError if it is none."""
    try:
        return float(text)
    except ValueError:
        raise damaged(path, f"{text[:80]!r} is not a number") from None

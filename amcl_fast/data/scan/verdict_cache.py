"""Verdicts of earlier scans, kept in the cache folder: good until size or time of change of a file is another one."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from amcl_fast.data import array_files
from amcl_fast.data.cache import cache_folder, in_use, unkept, write_whole
from amcl_fast.data.scan.header_process import NO_STAMP
from amcl_fast.data.scan.limits import Limits

_KIND = "verdicts 2"
_UNKNOWN = (NO_STAMP, NO_STAMP, 0, 0)
KINDS = (np.int64, np.int64, np.int64, np.int32)
"""Of the columns of `Known`."""


class Known(NamedTuple):
    """What is known of some files.

    Attributes:
        sizes, times: (n,) int64, bytes and ns; `NO_STAMP` for a file that is not known.
        pixels: (n,) int64, 0 where that is not known.
        codes: (n,) int32: 0 for a good one, or 1 + the place of its reason in `Verdicts.reasons`.
    """

    sizes: np.ndarray
    times: np.ndarray
    pixels: np.ndarray
    codes: np.ndarray


class Verdicts:
    """The verdicts on the files of a folder or of a list; none where the cache is damaged, or of another version.

    Attributes:
        reasons: why files cannot be used.
        is_current: whether all folders that were asked for are known, with just those files.
    """

    def __init__(self, folder: str, limits: Limits) -> None:
        """Look up what is kept.

        Args:
            folder: its path, or the list's.
            limits: by which the files were judged: of others there are other verdicts.
        """
        self._folder = folder
        name = hashlib.sha256(os.fsencode(folder + limits.key)).hexdigest()[:32]
        self._path = cache_folder() / "scans" / name
        self.reasons: list[str] = []
        self._columns = Known(*(np.empty(0, kind) for kind in KINDS))
        self._names = memoryview(b"")
        self._begins = np.zeros(1, np.int64)
        self._files: dict[bytes, slice] = {}
        self._asked = 0
        self._missed = False
        with suppress(OSError, ValueError, KeyError, TypeError):
            self._load(*array_files.read(self._path, copied=True))
            in_use(self._path)

    def _load(self, header: dict, arrays: dict[str, np.ndarray]) -> None:
        columns = Known(*(arrays[name] for name in Known._fields))
        reasons, counts, names = header["reasons"], arrays["counts"], arrays["names"]
        folders = arrays["folders"].tobytes().split(b"\0")[:-1]
        ends = np.flatnonzero(names == 0) + 1
        if not (
            header["kind"] == _KIND
            and isinstance(reasons, list)
            and all(isinstance(reason, str) for reason in reasons)
            and len(folders) == len(counts)
            and (counts >= 0).all()
            and all(len(column) == len(ends) == counts.sum() for column in columns)
            and ((columns.codes >= 0) & (columns.codes <= len(reasons))).all()
        ):
            raise ValueError(f"{self._path} holds no verdicts")
        bounds = np.append(0, np.cumsum(counts)).tolist()
        self.reasons, self._columns, self._names = reasons, columns, names.data
        self._begins = np.append(0, ends)
        self._files = {name: slice(*ends) for name, ends in zip(folders, pairwise(bounds), strict=True)}

    @property
    def is_current(self) -> bool:
        return not self._missed and self._asked == len(self._files)

    def known(self, prefix: str, names: bytes) -> Known:
        """What is known of files of a folder.

        Args:
            prefix: the folder's path and "/".
            names: of the files, as bytes, each followed by a NUL.
        """
        self._asked += 1
        place = self._files.get(os.fsencode(prefix))
        if place is not None and self._names[self._begins[place.start] : self._begins[place.stop]] == names:
            return Known(*(column[place] for column in self._columns))
        self._missed = True
        wanted = names.split(b"\0")[:-1]
        found = Known(*(np.full(len(wanted), value, kind) for value, kind in zip(_UNKNOWN, KINDS, strict=True)))
        if place is not None:
            begins = self._begins[place.start : place.stop + 1].tolist()
            old = {bytes(self._names[a : b - 1]): place.start + n for n, (a, b) in enumerate(pairwise(begins))}
            pairs = [(new, old[name]) for new, name in enumerate(wanted) if name in old]
            if pairs:
                here, there = np.array(pairs).T
                for column, known in zip(found, self._columns, strict=True):
                    column[here] = known[there]
        return found

    def keep(self, folders: Iterable[tuple[str, bytes, np.ndarray]], verdicts: Known, reasons: Sequence[str]) -> None:
        """Replace what is kept. Where the cache cannot be written, that is a warning, once.

        Args:
            folders: of each its path and "/", the names of its files and their places in `verdicts`.
            verdicts: of all files.
            reasons: to which the codes of `verdicts` belong.
        """
        prefixes, names, places = zip(*folders, strict=True)
        columns = Known(*(column[np.concatenate(places)] for column in verdicts))
        # Threads find them in any order.
        used = sorted((reasons[code - 1], code) for code in np.unique(columns.codes).tolist() if code)
        numbers = np.zeros(len(reasons) + 1, np.int32)
        numbers[[code for _, code in used]] = np.arange(1, len(used) + 1)
        columns = columns._replace(codes=numbers[columns.codes])
        header = {"kind": _KIND, "folder": self._folder, "reasons": [reason for reason, _ in used]}
        arrays = {
            "folders": np.frombuffer(os.fsencode("".join(f"{prefix}\0" for prefix in prefixes)), np.uint8),
            "counts": np.array([len(some) for some in places], np.int64),
            "names": np.frombuffer(b"".join(names), np.uint8),
            **columns._asdict(),
        }
        try:
            write_whole(self._path, array_files.encode(header, arrays).pieces)
            self._path.with_suffix(".json").unlink(missing_ok=True)  # of earlier versions
        except OSError as error:
            unkept(f"the scan of {self._folder}", error)

"""Millions of paths in few bytes: arrays that several processes can map, where a list would hold as many strings."""

import bisect
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import SupportsIndex, overload

import numpy as np

_CHUNK = 1 << 14  # paths that are decoded, or joined, at once

PARTS = ("prefixes", "prefix_offsets", "numbers", "starts", "lengths", "rests")
"""Names of the arrays of which `PackedPaths` is made."""


class PackedPaths(Sequence[str]):
    """Locations of files: an immutable sequence of strings, each a prefix out of a table and a rest.

    A path is cut behind its last "/", a member of a tar behind the NUL that follows its shard. Some 40 bytes each, of
    which a selection (`take`, a slice) copies 16; the arrays may lie in a mapped file. Equal to any list, tuple or
    packed sequence of the same strings.

    Attributes:
        arrays: by the names in `PARTS`: bytes of all prefixes (uint8), where each begins and the last ends (int64);
            for each location the number of its prefix (int32), where its rest begins (int64) and how long it is
            (int32); bytes of all rests (uint8). Bytes are those of the file system (`os.fsencode`).
    """

    __slots__ = ("_view", "arrays")

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take arrays as they are.

        Raises:
            ValueError: they are not those of packed paths.
        """
        self.arrays = {name: arrays[name] for name in PARTS}
        prefixes, offsets, numbers, starts, lengths, rests = self.arrays.values()
        consistent = (
            all(
                array.ndim == 1 and array.dtype == kind
                for array, kind in zip(self.arrays.values(), _KINDS, strict=True)
            )
            and len(numbers) == len(starts) == len(lengths)
            and len(offsets) > 0
            and offsets[0] == 0
            and offsets[-1] == len(prefixes)
            and (np.diff(offsets) >= 0).all()
        )
        if consistent and len(numbers):
            consistent = bool(
                numbers.min() >= 0
                and numbers.max() < len(offsets) - 1
                and starts.min() >= 0
                and lengths.min() >= 0
                and (starts + lengths).max() <= len(rests)
            )
        if not consistent:
            raise ValueError("the arrays are not those of packed paths")
        self._view = rests.data

    @classmethod
    def pack(cls, paths: Iterable[str]) -> "PackedPaths":
        """Pack strings; what is packed already is returned as it is."""
        if isinstance(paths, PackedPaths):
            return paths
        table: dict[bytes, int] = {}
        numbers, lengths, rests = array("i"), array("i"), bytearray()
        for path in paths:
            raw = os.fsencode(path)
            cut = (raw.find(b"\0") if b"\0" in raw else raw.rfind(b"/")) + 1
            numbers.append(table.setdefault(raw[:cut], len(table)))
            lengths.append(len(raw) - cut)
            rests += raw[cut:]
        return cls._made(
            [*table], np.frombuffer(numbers, np.int32), np.frombuffer(lengths, np.int32), np.frombuffer(rests, np.uint8)
        )

    @classmethod
    def in_folders(cls, folders: Sequence[tuple[str, bytes]]) -> "PackedPaths":
        """The files of folders.

        Args:
            folders: of each its path, and the names of its files as bytes, each followed by a NUL.
        """
        prefixes = [os.fsencode(path if path.endswith("/") else path + "/") for path, _ in folders]
        blob = np.frombuffer(b"".join(names for _, names in folders), np.uint8)
        ends = np.flatnonzero(blob == 0)
        starts = np.append(0, ends + 1)[:-1]
        counts = [names.count(b"\0") for _, names in folders]
        return cls._made(prefixes, np.repeat(np.arange(len(folders)), counts), ends - starts, blob, starts)

    @classmethod
    def in_shard(cls, shard: str, rests: bytes | bytearray, lengths: np.ndarray) -> "PackedPaths":
        """Members of a tar.

        Args:
            shard: its path.
            rests: of their locations, behind the NUL that follows the path, one after the other.
            lengths: bytes of each, (n,) integers.
        """
        numbers = np.zeros(len(lengths), np.int32)
        return cls._made(
            [os.fsencode(shard) + b"\0"], numbers, lengths.astype(np.int64), np.frombuffer(rests, np.uint8)
        )

    @classmethod
    def join(cls, parts: Iterable["PackedPaths"]) -> "PackedPaths":
        """One after the other. Parts of the same arrays go on sharing them."""
        parts = [part for part in parts if len(part)]
        if not parts:
            return cls.pack(())
        first = parts[0].arrays
        same = all(
            part.arrays[name] is first[name] for part in parts for name in ("prefixes", "prefix_offsets", "rests")
        )
        columns = {
            name: np.concatenate([part.arrays[name] for part in parts]) for name in ("starts", "lengths", "numbers")
        }
        if same:
            return cls({**first, **columns})
        counts = [len(part) for part in parts]
        tables = [np.diff(part.arrays["prefix_offsets"]) for part in parts]
        columns["numbers"] += np.repeat(_begins([len(table) for table in tables]), counts).astype(np.int32)
        columns["starts"] += np.repeat(_begins([len(part.arrays["rests"]) for part in parts]), counts)
        lengths = np.concatenate(tables)
        return cls(
            {
                **columns,
                "prefixes": np.concatenate([part.arrays["prefixes"] for part in parts]),
                "prefix_offsets": np.concatenate([_begins(lengths), [lengths.sum()]]),
                "rests": np.concatenate([part.arrays["rests"] for part in parts]),
            }
        )

    @classmethod
    def _made(
        cls,
        prefixes: Sequence[bytes],
        numbers: Sequence[int] | np.ndarray,
        lengths: np.ndarray,
        rests: bytes | np.ndarray,
        starts: np.ndarray | None = None,
    ) -> "PackedPaths":
        table = _lengths(prefixes)
        return cls(
            {
                "prefixes": np.frombuffer(b"".join(prefixes), np.uint8),
                "prefix_offsets": np.append(_begins(table), table.sum()),
                "numbers": np.asarray(numbers, np.int32),
                "starts": _begins(lengths) if starts is None else starts.astype(np.int64),
                "lengths": lengths.astype(np.int32),
                "rests": rests if isinstance(rests, np.ndarray) else np.frombuffer(rests, np.uint8),
            }
        )

    def take(self, indices: np.ndarray | Sequence[int] | slice) -> "PackedPaths":
        """Those at `indices`: numbers from 0 on, a mask, or a slice."""
        if not isinstance(indices, slice):
            indices = np.asarray(indices)
            if not indices.size:
                indices = indices.astype(np.int64)
        taken = PackedPaths.__new__(PackedPaths)
        taken._view = self._view
        taken.arrays = self.arrays | {name: self.arrays[name][indices] for name in ("numbers", "starts", "lengths")}
        return taken

    def compact(self) -> "PackedPaths":
        """The same without the bytes, and the prefixes, that none of them needs."""
        prefixes, offsets, numbers, starts, lengths, rests = self.arrays.values()
        used, numbers = np.unique(numbers, return_inverse=True)
        sizes = np.diff(offsets)[used]
        chunks = [
            rests[_spread(starts[at : at + _CHUNK], lengths[at : at + _CHUNK])] for at in range(0, len(self), _CHUNK)
        ]
        return PackedPaths(
            {
                "prefixes": prefixes[_spread(offsets[:-1][used], sizes)],
                "prefix_offsets": np.append(_begins(sizes), sizes.sum()),
                "numbers": numbers.reshape(-1).astype(np.int32),
                "starts": _begins(lengths),
                "lengths": lengths,
                "rests": np.concatenate(chunks) if chunks else rests[:0],
            }
        )

    def in_order(self) -> np.ndarray:
        """Indices that sort them as strings, (n,) int64, if those of each prefix are in order already."""
        used, which = np.unique(self.arrays["numbers"], return_inverse=True)
        prefixes = self._prefixes(used)
        ordered = sorted(set(prefixes))
        ranks = {prefix: rank for rank, prefix in enumerate(ordered)}
        rank = np.array([ranks[prefix] for prefix in prefixes], np.int64)[which.reshape(-1)]
        order = np.argsort(rank, kind="stable")
        bounds = np.searchsorted(rank, np.arange(len(ordered) + 1), sorter=order).tolist()
        # The files of a folder stand together, but where those of a folder within it come between.
        cuts = set(bounds[:-1])
        above: list[int] = []
        for number, prefix in enumerate(ordered):
            while above and not prefix.startswith(ordered[above[-1]]):
                above.pop()
            for upper in above:
                run = order[bounds[upper] : bounds[upper + 1]]
                cuts.add(bounds[upper] + bisect.bisect_left(run, prefix, key=self.__getitem__))
            above.append(number)
        begins = sorted(cuts - {len(order)})
        pieces = np.split(order, begins[1:])
        pieces.sort(key=lambda piece: self[piece[0]] if len(piece) else "")
        return np.concatenate(pieces)

    def by_prefix(self) -> Iterator[tuple[str, np.ndarray]]:
        """Each prefix that is in use, and the places of those that have it, in ascending order."""
        order = np.argsort(self.arrays["numbers"], kind="stable")
        used, begins = np.unique(self.arrays["numbers"][order], return_index=True)
        for prefix, (begin, end) in zip(self._prefixes(used), pairwise([*begins.tolist(), len(order)]), strict=True):
            yield prefix, order[begin:end]

    def rests(self, places: np.ndarray) -> bytes:
        """What follows the prefixes of some, each followed by a NUL."""
        starts, lengths, rests = (self.arrays[name] for name in ("starts", "lengths", "rests"))
        starts, lengths = starts[places], lengths[places]
        ends = starts + lengths
        # As `in_folders` has them.
        if len(ends) and ends[-1] < len(rests) and (starts[1:] == ends[:-1] + 1).all() and not rests[ends].any():
            return rests[starts[0] : ends[-1] + 1].tobytes()
        joined = np.zeros(int(lengths.sum()) + len(places), np.uint8)
        joined[_spread(_begins(lengths + 1), lengths)] = rests[_spread(starts, lengths)]
        return joined.tobytes()

    def _prefixes(self, numbers: np.ndarray) -> list[str]:
        text, offsets = self.arrays["prefixes"].data, self.arrays["prefix_offsets"]
        ends = zip(offsets[numbers].tolist(), offsets[numbers + 1].tolist(), strict=True)
        return [os.fsdecode(bytes(text[start:end])) for start, end in ends]

    def places(self, paths: Iterable[str]) -> np.ndarray:
        """Where any of these paths stand, in ascending order, (n,) int64; few of them cost little."""
        wanted = set(paths)
        if not wanted:
            return np.empty(0, np.int64)
        given = PackedPaths.pack(wanted)
        # What agrees in the length of prefix and rest is compared as text.
        keys, searched = (
            np.diff(some.arrays["prefix_offsets"])[some.arrays["numbers"]] << 32 | some.arrays["lengths"]
            for some in (given, self)
        )
        candidates = np.flatnonzero(np.isin(searched, keys))
        found = [path in wanted for path in self.take(candidates)]
        return candidates[np.asarray(found, bool)]

    def labelled_names(self, labels: np.ndarray) -> Iterator[bytes]:
        """Bytes of "LABEL/REST" and a NUL for each location, in pieces, without a string for any.

        Args:
            labels: (n,) integers.
        """
        values, which = np.unique(labels, return_inverse=True)
        texts = [f"{value}/".encode() for value in values.tolist()]
        label_lengths, label_bytes = _lengths(texts), np.frombuffer(b"".join(texts), np.uint8)
        label_starts = _begins(label_lengths)
        starts, lengths, rests = (self.arrays[name] for name in ("starts", "lengths", "rests"))
        for at in range(0, len(self), _CHUNK):
            labels_of, first, count = which[at : at + _CHUNK], starts[at : at + _CHUNK], lengths[at : at + _CHUNK]
            before = label_lengths[labels_of]
            ends = np.cumsum(before + count + 1)
            begins = ends - before - count - 1
            joined = np.zeros(ends[-1], np.uint8)
            joined[_spread(begins, before)] = label_bytes[_spread(label_starts[labels_of], before)]
            joined[_spread(begins + before, count)] = rests[_spread(first, count)]
            yield joined.tobytes()

    def __len__(self) -> int:
        return len(self.arrays["numbers"])

    @overload
    def __getitem__(self, index: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "PackedPaths": ...
    def __getitem__(self, index: SupportsIndex | slice) -> "str | PackedPaths":
        if isinstance(index, slice):
            return self.take(index)
        place = index.__index__()
        if not -len(self) <= place < len(self):
            raise IndexError(f"index must be in -{len(self)} to {len(self) - 1}, got {place}")
        prefixes, offsets, numbers, starts, lengths, _ = self.arrays.values()
        number, start = int(numbers[place]), int(starts[place])
        prefix = prefixes[offsets[number] : offsets[number + 1]].tobytes()
        return os.fsdecode(prefix + bytes(self._view[start : start + int(lengths[place])]))

    def __iter__(self) -> Iterator[str]:
        prefixes, offsets, *columns, _ = self.arrays.values()
        known: dict[int, bytes] = {}
        for at in range(0, len(self), _CHUNK):
            for number, start, length in zip(*(column[at : at + _CHUNK].tolist() for column in columns), strict=True):
                if number not in known:
                    known = {number: prefixes[offsets[number] : offsets[number + 1]].tobytes()}
                yield os.fsdecode(known[number] + bytes(self._view[start : start + length]))

    def __add__(self, other: "PackedPaths") -> "PackedPaths":
        return PackedPaths.join([self, other])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PackedPaths | list | tuple):
            return NotImplemented
        return len(self) == len(other) and all(own == theirs for own, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as a list has none

    def __reduce__(self) -> tuple:
        return PackedPaths, (self.arrays,)

    def __repr__(self) -> str:
        few = ", ".join(map(repr, self[:3]))
        return f"PackedPaths([{few}{', …' if len(self) > 3 else ''}], {len(self):,} in all)"


_KINDS = (np.uint8, np.int64, np.int32, np.int64, np.int32, np.uint8)


def _lengths(texts: Sequence[bytes]) -> np.ndarray:
    return np.fromiter(map(len, texts), np.int64, len(texts))


def _begins(lengths: np.ndarray | Sequence[int]) -> np.ndarray:
    """Where each of some pieces begins that lie one behind the other, (n,) int64."""
    lengths = np.asarray(lengths, np.int64)
    return np.cumsum(lengths) - lengths


def _spread(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The places of all bytes of pieces, one piece after the other, (Σ lengths,) int64."""
    return np.repeat(starts - _begins(lengths), lengths) + np.arange(int(lengths.sum()))

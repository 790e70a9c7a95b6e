"""Judge files: many are shared by processes, and what was found of each is kept."""

import os
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, nullcontext

import numpy as np

from amcl_fast.data.packed_paths import PackedPaths
from amcl_fast.data.processes.pool import Pool
from amcl_fast.data.scan import header_process
from amcl_fast.data.scan.images import Group
from amcl_fast.data.scan.largest import KEPT, Largest
from amcl_fast.data.scan.limits import DEFAULT_LIMITS, Limits
from amcl_fast.data.scan.verdict_cache import KINDS, Known, Verdicts
from amcl_fast.progress import Progress

_TOGETHER = 2048  # files of a job
_MANY = 16_384  # files for which processes pay
_KEPT_EVERY = 120.0  # seconds of a long scan


def check_files(
    folder: str, groups: Mapping[str, PackedPaths], tell: bool = True, limits: Limits = DEFAULT_LIMITS
) -> dict[str, Group]:
    """Judge files, from the cache where one has not changed. Many are shared by processes.

    Verdicts are kept every few minutes, and where it is interrupted: the next scan goes on there.

    Args:
        folder: in which they lie, or the list that names them: the cache has a file for each.
        groups: files by any name.
        tell: show how far it has come, should it take long.
        limits: what is too large; other limits have other verdicts.

    Raises:
        OSError: the processes do not stay, or DALI decodes nothing at all.
    """
    judgement = _Judgement(PackedPaths.join(groups.values()), Verdicts(folder, limits), tell, limits)
    kept_at = time.monotonic()
    try:
        with closing(judgement.check()) as steps:
            for _ in steps:
                if judgement.changed and time.monotonic() > kept_at + _KEPT_EVERY:
                    judgement.keep()
                    kept_at = time.monotonic()
    finally:
        if judgement.changed:
            judgement.keep()
    begin, judged = 0, {}
    for name, files in groups.items():
        end = begin + len(files)
        judged[name] = Group(files, judgement.bad(begin, end), judgement.largest(begin, end))
        begin = end
    return judged


class _Judgement:
    """What is known of files, from an earlier scan at first.

    Attributes:
        changed: whether there is anything to keep.
    """

    def __init__(self, files: PackedPaths, verdicts: Verdicts, tell: bool, limits: Limits) -> None:
        self._files, self._verdicts, self._tell, self._limits = files, verdicts, tell, limits
        self._reasons = {reason: code for code, reason in enumerate(verdicts.reasons, 1)}
        self._units = [*_units(files, verdicts)]
        count = len(files)
        self._now = Known(*(np.empty(count, kind) for kind in KINDS))
        for _, places, _, known in self._units:
            for column, old in zip(self._now, known, strict=True):
                column[places] = old
        self._doubtful: dict[int, int] = {}  # size of each, which is noted once it is decided
        self._pending: deque[list[tuple[np.ndarray, Known]]] = deque()
        self._most: list[np.ndarray] | None = None  # places of the largest good ones, by each measure
        self.changed = count > 0 and not verdicts.is_current

    def keep(self) -> None:
        """Write what is known into the cache."""
        files = self._files
        folders = ((prefix, files.rests(places), places) for prefix, places in files.by_prefix())
        self._verdicts.keep(folders, self._now, [*self._reasons])

    def bad(self, begin: int, end: int) -> dict[int, str]:
        """Of the files from `begin` to before `end` the place of each bad one, from `begin` on, to the reason."""
        told, codes = [*self._reasons], self._now.codes[begin:end]
        return {place: told[codes[place] - 1] for place in np.flatnonzero(codes).tolist()}

    def largest(self, begin: int, end: int) -> Largest:
        """Of the same files those that are among the largest of all, bad ones left out."""
        if self._most is None:
            good = np.flatnonzero(self._now.codes == 0)
            self._most = [
                np.sort(good[np.argpartition(column[good], -KEPT)[-KEPT:]]) if len(good) > KEPT else good
                for column in self._measures
            ]
        here = (most[slice(*np.searchsorted(most, (begin, end)))] for most in self._most)
        return Largest.of(*(column[places].tolist() for column, places in zip(self._measures, here, strict=True)))

    @property
    def _measures(self) -> tuple[np.ndarray, np.ndarray]:
        return self._now.pixels, self._now.sizes

    def check(self) -> Generator[None, None, None]:
        """Look at all files whose stamp has changed, and decode those that leave doubts; yields now and then."""
        with (
            Progress("checking images", len(self._files), shown=self._tell) as progress,
            Pool("scan.header_process") if len(self._files) >= _MANY else nullcontext() as pool,
        ):
            for answer in pool.map(self._jobs()) if pool else map(header_process.answer, self._jobs()):
                done = self._pending.popleft()
                for (places, known), found in zip(done, header_process.checked(answer), strict=True):
                    if found.good or found.doubtful or found.bad:
                        self.changed |= self._note(places, known, found)
                progress.add(sum(len(places) for places, _ in done))
                yield
        if self._doubtful:
            yield from self._decode()

    def _jobs(self) -> Iterator[bytes]:
        parts, places_of, count = [], [], 0
        for prefix, places, names, known in self._units:
            folder = os.fsencode(prefix), names, known.sizes.tobytes(), known.times.tobytes()
            parts.append(header_process.Folder(*folder))
            places_of.append((places, known))
            count += len(places)
            if count >= _TOGETHER:
                self._pending.append(places_of)
                yield header_process.job(parts, self._limits)
                parts, places_of, count = [], [], 0
        if parts:
            self._pending.append(places_of)
            yield header_process.job(parts, self._limits)

    def _note(self, places: np.ndarray, known: Known, found: header_process.Checked) -> bool:
        """Take over what has changed; whether it is to be kept."""
        now = self._now
        now.sizes[places] = np.frombuffer(found.sizes, np.int64)
        now.times[places] = np.frombuffer(found.times, np.int64)
        looked_at = found.good + found.doubtful
        now.pixels[places[looked_at]] = np.frombuffer(found.pixels, np.int64)[looked_at]
        now.codes[places[looked_at]] = 0
        for place, reason in found.bad:
            now.codes[places[place]] = self._code(reason)
        # Those of which no verdict may be kept are looked at every time.
        is_new = not all(np.array_equal(column[places], old) for column, old in zip(now, known, strict=True))
        undecided = places[found.doubtful]
        self._doubtful.update(zip(undecided.tolist(), now.sizes[undecided].tolist(), strict=True))
        now.sizes[undecided] = header_process.NO_STAMP
        return is_new

    def _code(self, reason: str) -> int:
        return self._reasons.setdefault(reason, len(self._reasons) + 1)

    def _decode(self) -> Generator[None, None, None]:
        from amcl_fast.data.scan.undecodable import UNDECODABLE, find_undecodable

        where = {self._files[place]: place for place in self._doubtful}
        paths = sorted(where)
        with Progress("decoding doubtful images", len(where), shown=self._tell) as progress:
            for first in range(0, len(paths), _TOGETHER):
                group = paths[first : first + _TOGETHER]
                undecodable = find_undecodable(group, progress.add, self._limits)
                for path in group:
                    place = where[path]
                    if path in undecodable:
                        self._now.codes[place] = self._code(UNDECODABLE)
                    if undecodable.get(path, True):
                        self._now.sizes[place] = self._doubtful[place]
                yield


def _units(files: PackedPaths, verdicts: Verdicts) -> Iterator[tuple[str, np.ndarray, bytes, Known]]:
    """Parts of folders: path and "/", places of files in `files`, their names, and what is known of them."""
    for prefix, places in files.by_prefix():
        names = files.rests(places)
        known = verdicts.known(prefix, names)
        if len(places) <= _TOGETHER:
            yield prefix, places, names, known
            continue
        for first in range(0, len(places), _TOGETHER):
            part = slice(first, first + _TOGETHER)
            yield prefix, places[part], files.rests(places[part]), Known(*(column[part] for column in known))

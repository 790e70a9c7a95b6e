"""Find the images of a folder of classes, and those that would end a run, before the run."""

import hashlib
import os
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from amcl_fast.data.packed_paths import PackedPaths
from amcl_fast.data.processes.pool import Pool
from amcl_fast.data.scan import header_process
from amcl_fast.data.scan.headers import SUPPORTED
from amcl_fast.data.scan.left_out import of_other_class
from amcl_fast.data.scan.verdict_cache import Known, Verdicts
from amcl_fast.data.scan.walk import Tree, list_files
from amcl_fast.progress import Progress

_LAYOUT = f"ROOT/CLASS/IMAGE, with {SUPPORTED} images"
_TOGETHER = 2048  # files of a job
_MANY = 16_384  # files for which processes pay
_KEPT_EVERY = 120.0  # seconds of a long scan


class Images:
    """Image files with their labels, ordered by class and path.

    Attributes:
        files: their locations: paths, or members of shards (`data.locations`). Any sequence is packed.
        labels: (n,) integers, index into `classes` for each file; -1 for an image without a label.
        classes: names of the classes.
        skipped: (location, reason) for each file left out.
    """

    def __init__(
        self,
        files: Sequence[str],
        labels: Sequence[int] | np.ndarray,
        classes: list[str],
        skipped: Sequence[tuple[str, str]] = (),
        fingerprint: str | None = None,
    ) -> None:
        """Pack what is given.

        Args:
            files: as the attribute.
            labels: as the attribute.
            classes: as the attribute.
            skipped: as the attribute.
            fingerprint: where it is known already.

        Raises:
            ValueError: there are not as many labels as files.
        """
        self.files = PackedPaths.pack(files)
        self.labels = np.asarray(labels) if len(labels) else np.empty(0, np.int64)
        self.classes, self.skipped = classes, list(skipped)
        if len(self.labels) != len(self.files):
            raise ValueError(f"labels must be {len(self.files):,} numbers, one for each file, got {len(self.labels):,}")
        if fingerprint is not None:
            self.fingerprint = fingerprint

    @cached_property
    def fingerprint(self) -> str:
        """The same for the same labels and names in the same order, wherever the folder is.

        Names are what follows the folder in a path, and the shard in the location of a member.
        """
        digest = hashlib.sha256()
        for names in self.files.labelled_names(self.labels):
            digest.update(names)
        return digest.hexdigest()

    def subset(self, indices: Iterable[int] | np.ndarray) -> "Images":
        """The images at `indices`, or where a mask is true, with nothing skipped."""
        chosen = indices if isinstance(indices, np.ndarray) else np.fromiter(indices, np.int64)
        return Images(self.files.take(chosen), self.labels[chosen], self.classes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Images):
            return NotImplemented
        return (
            np.array_equal(self.labels, other.labels)
            and (self.classes, self.skipped) == (other.classes, other.skipped)
            and self.files == other.files
        )

    __hash__ = None  # type: ignore[assignment]  # it can change

    def __repr__(self) -> str:
        return f"Images({len(self.files):,} files of {len(self.classes):,} classes, {len(self.skipped):,} skipped)"


@dataclass(frozen=True)
class Group:
    """Files that were judged.

    Attributes:
        files: all of them, in order.
        bad: place of each that cannot be used to the reason.
    """

    files: PackedPaths
    bad: dict[int, str]

    @property
    def is_usable(self) -> bool:
        """Whether any of them can be used."""
        return len(self.bad) < len(self.files)

    def good(self) -> PackedPaths:
        """Those that can be used."""
        return self.files.take(np.delete(np.arange(len(self.files)), [*self.bad])) if self.bad else self.files

    def left_out(self) -> list[tuple[str, str]]:
        """(location, reason) of the others."""
        return [(self.files[place], reason) for place, reason in self.bad.items()]


def scan_classes(root: str | Path, classes: list[str] | None = None, *, tell: bool = True) -> Images:
    """Find and check the images of root/CLASS/..., sub-folders included.

    Files and folders whose name begins with a dot are ignored, and folders that systems leave behind (`Tree`). Each
    other file is judged by its content: truncated, empty, fake, unsupported and dangling ones are left out and listed,
    and so are folders that cannot be read or are there already (`list_files`). Damage in the middle of a file is not
    seen here. Verdicts are kept in the cache folder, by path, size and time of change.

    Args:
        root: the folder of classes.
        classes: the classes' names, to number the labels by; images of other classes are left out and listed.
            Default: the names of the folders that hold at least one good image, sorted.
        tell: show how far it has come, should it take long.

    Raises:
        ValueError: `root` is no folder, holds no folder of a class, or no good image.
    """
    folder = existing_folder(root, _LAYOUT)
    with listing(tell) as progress:
        tree = Tree(progress.add)
        names = tree.subfolders(folder)
        if not names:
            raise ValueError(f"{folder} holds no folder of a class; expected {_LAYOUT}")
        files, left_out = list_files([folder], {name: os.path.join(folder, name) for name in names}, tree)
    images = labelled(check_files(folder, files, tell), classes)
    images.skipped.extend(left_out)
    return not_empty(images, folder, _LAYOUT)


def listing(tell: bool) -> Progress:
    """Counts the files that a `Tree` finds."""
    return Progress("listing files", shown=tell)


def labelled(found: Mapping[str, Group], classes: list[str] | None = None) -> Images:
    """Images of groups of files, a class each.

    Args:
        found: of each group, by the name of its class.
        classes: as for `scan_classes`.
    """
    if classes is None:
        classes = sorted(name for name, group in found.items() if group.is_usable)
    numbers = {name: number for number, name in enumerate(classes)}
    files, labels = [], []
    skipped: list[tuple[str, str]] = []
    for name in sorted(found):
        group = found[name]
        if name in numbers:
            files.append(group.good())
            labels.append(np.full(len(files[-1]), numbers[name], np.int32))
            skipped += group.left_out()
        else:
            other = of_other_class(name)
            skipped += [(path, group.bad.get(place, other)) for place, path in enumerate(group.files)]
    return Images(PackedPaths.join(files), np.concatenate(labels) if labels else [], classes, skipped)


def unlabelled(found: Mapping[str, Group], classes: list[str]) -> Images:
    """Images of groups of files, without a label."""
    files = PackedPaths.join(group.good() for group in found.values())
    skipped = sorted(entry for group in found.values() for entry in group.left_out())
    return Images(files.take(files.in_order()), np.full(len(files), -1, np.int32), classes, skipped)


def existing_folder(root: str | Path, layout: str) -> str:
    """The absolute path of a folder.

    Raises:
        ValueError: it is none; the message says which `layout` was expected.
    """
    folder = os.path.abspath(root)
    if not os.path.isdir(folder):
        problem = "is not a folder" if os.path.exists(folder) else "does not exist"
        raise ValueError(f"{folder} {problem}; expected {layout}")
    return folder


def not_empty(images: Images, where: str, layout: str) -> Images:
    """The images themselves.

    Raises:
        ValueError: there are none; the message says what was left out, and which `layout` was expected.
    """
    if not images.files:
        first = "".join(f"\n  {path}: {reason}" for path, reason in images.skipped[:5])
        raise ValueError(
            f"{where} holds no usable image; expected {layout}."
            + (f" Left out {len(images.skipped)}, the first:{first}" if first else "")
        )
    return images


def check_files(folder: str, groups: Mapping[str, PackedPaths], tell: bool = True) -> dict[str, Group]:
    """Judge files, from the cache where one has not changed. Many are shared by processes.

    Verdicts are kept every few minutes, and where it is interrupted: the next scan goes on there.

    Args:
        folder: in which they lie, or the list that names them: the cache has a file for each.
        groups: files by any name.
        tell: show how far it has come, should it take long.

    Raises:
        OSError: the processes do not stay, or DALI decodes nothing at all.
    """
    files = PackedPaths.join(groups.values())
    verdicts = Verdicts(folder)
    reasons = {reason: code for code, reason in enumerate(verdicts.reasons, 1)}
    units = [*_units(files, verdicts)]
    now = Known(np.empty(len(files), np.int64), np.empty(len(files), np.int64), np.empty(len(files), np.int32))
    for _, places, _, known in units:
        for column, old in zip(now, known, strict=True):
            column[places] = old
    doubtful: dict[int, int] = {}  # size of each, which is noted once it is decided
    changed = len(files) > 0 and not verdicts.is_current
    pending: deque[list[tuple[np.ndarray, Known]]] = deque()

    def keep() -> None:
        folders = ((prefix, files.rests(places), places) for prefix, places in files.by_prefix())
        verdicts.keep(folders, now, [*reasons])

    def jobs() -> Iterator[bytes]:
        parts, places_of, count = [], [], 0
        for prefix, places, names, known in units:
            parts.append(
                header_process.Folder(os.fsencode(prefix), names, known.sizes.tobytes(), known.times.tobytes())
            )
            places_of.append((places, known))
            count += len(places)
            if count >= _TOGETHER:
                pending.append(places_of)
                yield header_process.job(parts)
                parts, places_of, count = [], [], 0
        if parts:
            pending.append(places_of)
            yield header_process.job(parts)

    def check() -> Generator[None, None, None]:
        nonlocal changed
        with (
            Progress("checking images", len(files), shown=tell) as progress,
            Pool("scan.header_process") if len(files) >= _MANY else nullcontext() as pool,
        ):
            for answer in pool.map(jobs()) if pool else map(header_process.answer, jobs()):
                done = pending.popleft()
                for (places, known), found in zip(done, header_process.checked(answer), strict=True):
                    if found.good or found.doubtful or found.bad:
                        changed |= note(places, known, found)
                progress.add(sum(len(places) for places, _ in done))
                yield
        if doubtful:
            yield from decode()

    def note(places: np.ndarray, known: Known, found: header_process.Checked) -> bool:
        """Take over what has changed; whether it is to be kept."""
        now.sizes[places] = np.frombuffer(found.sizes, np.int64)
        now.times[places] = np.frombuffer(found.times, np.int64)
        now.codes[places[found.good + found.doubtful]] = 0
        for place, reason in found.bad:
            now.codes[places[place]] = reasons.setdefault(reason, len(reasons) + 1)
        # Those of which no verdict may be kept are looked at every time.
        is_new = not all(np.array_equal(column[places], old) for column, old in zip(now, known, strict=True))
        undecided = places[found.doubtful]
        doubtful.update(zip(undecided.tolist(), now.sizes[undecided].tolist(), strict=True))
        now.sizes[undecided] = header_process.NO_STAMP
        return is_new

    def decode() -> Generator[None, None, None]:
        from amcl_fast.data.scan.undecodable import UNDECODABLE, find_undecodable

        where = {files[place]: place for place in doubtful}
        paths = sorted(where)
        with Progress("decoding doubtful images", len(where), shown=tell) as progress:
            for first in range(0, len(paths), _TOGETHER):
                group = paths[first : first + _TOGETHER]
                undecodable = find_undecodable(group, progress.add)
                for path in group:
                    place = where[path]
                    if path in undecodable:
                        now.codes[place] = reasons.setdefault(UNDECODABLE, len(reasons) + 1)
                    if undecodable.get(path, True):
                        now.sizes[place] = doubtful[place]
                yield

    kept_at = time.monotonic()
    try:
        with closing(check()) as steps:
            for _ in steps:
                if changed and time.monotonic() > kept_at + _KEPT_EVERY:
                    keep()
                    kept_at = time.monotonic()
    finally:
        if changed:
            keep()
    told, begin, judged = [*reasons], 0, {}
    for name, some in groups.items():
        codes = now.codes[begin : begin + len(some)]
        judged[name] = Group(some, {place: told[codes[place] - 1] for place in np.flatnonzero(codes).tolist()})
        begin += len(some)
    return judged


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

"""Images with their labels, and groups of files that were judged, of which they are made."""

import hashlib
import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from amcl_fast.data.packed_paths import PackedPaths
from amcl_fast.data.scan.headers import unsupported
from amcl_fast.data.scan.largest import Largest
from amcl_fast.left_out import few, of_other_class

_SHOWN = 3  # of what an empty data set has left out


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
        largest: of the others, those that are among the largest of all groups that were judged together.
    """

    files: PackedPaths
    bad: dict[int, str]
    largest: Largest

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


def composed(name: str) -> str:
    """The name of a class by which it is compared: Unicode has two spellings of é, and file systems keep either."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def in_one_spelling(files: Mapping[str, PackedPaths], classes: Iterable[str] = ()) -> dict[str, PackedPaths]:
    """Files by the name of their class, which is spelt as in `classes`, or as the first of those that are the same."""
    spelling = {composed(name): name for name in classes}
    parts: dict[str, list[PackedPaths]] = {}
    for name, found in files.items():
        parts.setdefault(spelling.setdefault(composed(name), name), []).append(found)
    return {name: found[0] if len(found) == 1 else PackedPaths.join(found) for name, found in parts.items()}


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


def converting(skipped: Iterable[tuple[str, str]], folder: str = "SOURCE") -> str:
    """What helps where files of a folder are of a format that DALI does not decode everywhere, "" where none is."""
    formats = Counter(kind for _, reason in skipped if (kind := unsupported(reason)))
    told = few(f"{number:,} {kind}" for kind, number in formats.most_common())
    return f"to convert {told}: python -m amcl_fast.data.convert {shlex.quote(folder)} TARGET" if told else ""


def not_empty(images: Images, where: str, layout: str) -> Images:
    """The images themselves.

    Raises:
        ValueError: there are none; the message says what was left out, and which `layout` was expected.
    """
    if not images.files:
        first = "; ".join(f"{path}: {reason}" for path, reason in images.skipped[:_SHOWN])
        left_out = f". Left out {len(images.skipped):,}, the first: {first}" if first else ""
        remedy = converting(images.skipped)
        raise ValueError(f"{where} holds no usable image; expected {layout}{left_out}{remedy and '; '}{remedy}")
    return images

"""Images whose classes are numbers with names: what lists and shards have in common."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from amcl_fast.data.locations import shown
from amcl_fast.data.packed_paths import PackedPaths
from amcl_fast.data.scan.images import Images, composed
from amcl_fast.data.scan.largest import Largest
from amcl_fast.left_out import NO_LABEL, few, of_other_class


def no_labels(only: str | None = None) -> str:
    """Why images have none to train with: all are of one class, which has this name, or few or none have any."""
    return "the images have no labels" if only is None else f"all images are of one class, {only!r}"


@dataclass
class Found:
    """Usable images of a list or of shards, in their order there.

    Attributes:
        files: their locations.
        numbers: (n,) integers, of the class of each; -1 without one.
        name: of the class of a number.
        largest: of them.
        left_out: (what is shown, reason).
        notes: lines for the user.
    """

    files: PackedPaths
    numbers: np.ndarray
    name: Callable[[int], str]
    largest: Largest
    left_out: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def training(self) -> tuple[Images, str | None]:
        """The images to train on, and why they have no labels: fewer than two classes have one."""
        present = np.unique(self.numbers[self.numbers >= 0])
        if len(present) < 2:
            alone = len(present) == 1 and bool((self.numbers >= 0).all())
            return self.unlabelled([]), no_labels(self.name(int(present[0])) if alone else None)
        labels = np.where(self.numbers >= 0, np.searchsorted(present, self.numbers), -1).astype(np.int32)
        return Images(self.files, labels, [self.name(number) for number in present.tolist()], self.left_out), None

    def unlabelled(self, classes: list[str]) -> Images:
        """The images without a label, beside those of `classes`."""
        return Images(self.files, np.full(len(self.files), -1, np.int32), classes, self.left_out)

    def measured(self, classes: list[str]) -> tuple[Images | None, str]:
        """The images of some classes; None and why if there are none."""
        known = {composed(name): number for number, name in enumerate(classes)}
        present, which = np.unique(self.numbers, return_inverse=True)
        names = [self.name(number) if number >= 0 else "" for number in present.tolist()]
        labels = np.array([known.get(composed(name), -1) if name else -1 for name in names], np.int32)[
            which.reshape(-1)
        ]
        keep = labels >= 0
        if not self.files and self.left_out:
            (path, reason), number = self.left_out[0], len(self.left_out)
            return None, f"none of its {number:,} files can be used, the first: {path}: {reason}"
        if not keep.any():
            own = [name for name in names if name]
            of = f"its classes ({few(own)})" if own else "its images, without labels,"
            return None, f"{of} are not of those that are trained on ({few(classes)})"
        others = np.flatnonzero(~keep)
        reasons = [of_other_class(name) if name else NO_LABEL for name in names]
        told = zip(self.files.take(others), which.reshape(-1)[others].tolist(), strict=True)
        left_out = [*self.left_out, *((shown(location), reasons[place]) for location, place in told)]
        return Images(self.files.take(keep), labels[keep], classes, left_out), ""

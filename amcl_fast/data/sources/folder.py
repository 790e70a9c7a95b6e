"""Where a folder keeps its images: for training, held out, without labels (docs/data.md has the table)."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from amcl_fast.data.packed_paths import PackedPaths
from amcl_fast.data.scan.check import check_files
from amcl_fast.data.scan.classes import AS_LIST, existing_folder, listing
from amcl_fast.data.scan.headers import IMAGE_NAMES, SUPPORTED
from amcl_fast.data.scan.identity import identity, lineage
from amcl_fast.data.scan.images import Group, Images, converting, in_one_spelling, labelled, not_empty, unlabelled
from amcl_fast.data.scan.largest import Largest
from amcl_fast.data.scan.limits import DEFAULT_LIMITS, Limits
from amcl_fast.data.scan.walk import Tree, list_files
from amcl_fast.data.sources.glance import files_of, holds_images, holds_meant, may_hold_images, readable
from amcl_fast.data.sources.numbered import no_labels
from amcl_fast.left_out import FOLDER_UNREADABLE, LOOSE, NO_IMAGES, few, not_entered

TRAINING = ("train", "training")
HELD_OUT = ("test", "testing", "val", "valid", "validation")
"""In the order in which they are considered."""
UNLABELLED = ("unlabeled", "unlabelled")
_NOT_TRAINING = (*HELD_OUT, *UNLABELLED)
_PARTS = (*TRAINING, *_NOT_TRAINING)
UNUSED = "is not used as the held-out part"
"""In a line on a part that was not taken."""

_LAYOUT = f"ROOT/train/CLASS/IMAGE, ROOT/CLASS/IMAGE or images without classes, {SUPPORTED}"

_Check = Callable[[str, Mapping[str, PackedPaths]], dict[str, Group]]
"""`check_files` of a run."""


@dataclass(frozen=True)
class Sources:
    """The images of a folder.

    Attributes:
        train: images to train on; their labels are -1 where fewer than two classes have a usable one.
        held_out: images to measure on, of classes of `train`; None where no part of the folder is for them.
        unlabelled: further images to train on, without a label; None where no part of the folder is for them.
        no_labels: why the images of `train` have no labels; None if they have.
        notes: lines for the user, on folders that were not taken for what they may have been meant for.
        name: of all of this, paths included, once it was kept (`data.sources.list_cache`); the same for the same
            content.
        largest: of the images of all parts.
        places: what `train`, `held_out` and `unlabelled` are of, in words: "val/".
    """

    train: Images
    held_out: Images | None
    unlabelled: Images | None
    no_labels: str | None
    notes: list[str]
    name: str | None = field(default=None, compare=False)
    places: dict[str, str] = field(default_factory=dict)
    largest: Largest = field(default_factory=lambda: Largest([], []), compare=False)


@dataclass
class _Parts:
    """Which folder is for what.

    Attributes:
        base: in which the classes lie; None if there is none.
        classes: names of the folders in `base`.
        held_out, unlabelled: paths.
        notes: as in `Sources`.
    """

    base: str | None
    classes: list[str] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)
    unlabelled: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_sources(root: str | Path, *, tell: bool = True, limits: Limits = DEFAULT_LIMITS) -> Sources:
    """Find and check the images of a folder.

    Args:
        root: the folder.
        tell: show how far it has come, should it take long.
        limits: what is too large.

    Raises:
        ValueError: it is no folder, holds no usable image, or leaves open which part of it is for what.
        OSError: it cannot be read.
    """
    folder = existing_folder(root, _LAYOUT)
    with listing(tell) as progress:
        tree = Tree(progress.add)
        parts = _find_parts(folder, tree)
        _drop_repeated(folder, parts)
        starts = {("", name): os.path.join(parts.base or folder, name) for name in parts.classes}
        starts |= {(path, name): os.path.join(path, name) for path in parts.held_out for name in readable(path, tree)}
        starts |= {(path, ""): path for path in parts.unlabelled}
        files, left_out = list_files([path for path in (folder, parts.base, *parts.held_out) if path], starts, tree)

    largest: list[Largest] = []

    def check(path: str, groups: Mapping[str, PackedPaths]) -> dict[str, Group]:
        found = check_files(path, groups, tell, limits)
        largest.extend(group.largest for group in found.values())
        return found

    train, unlabelled_why = _training(
        parts, _in_one_spelling(parts, {name: files["", name] for name in parts.classes}), dict(left_out), tree, check
    )
    extra = [unlabelled(check(path, {"": files[path, ""]}), train.classes) for path in parts.unlabelled]
    if parts.base != folder:
        train.skipped.extend(_loose(folder, tree, check))
    train.skipped.extend(left_out)
    if not any(part.files for part in (train, *extra)):
        where, layout = folder, _LAYOUT
        if parts.held_out:
            held = _names(parts.held_out)
            where, layout = f"{folder} but for {held}", f"{layout}; to train on {held}, give that as data.root"
        not_empty(Images([], [], [], [entry for part in (train, *extra) for entry in part.skipped]), where, layout)

    places = {"train": _place([parts.base] if parts.base else [])}
    places["unlabelled"] = _place(parts.unlabelled)
    held_out, why, unused = None, "the training has no classes", {}
    measured = None
    for number, path in enumerate(parts.held_out, 1):
        if train.classes:
            groups = in_one_spelling({name: files[path, name] for name in readable(path, tree)}, train.classes)
            held_out, why = _held_out(path, groups, train.classes, tree, check)
        if held_out is not None:
            others = _place(parts.held_out[number:])
            measured = path
            places["held_out"] = _place([path]) + (f", not {others}" if others else "")
            break
        unused[path] = why
    if held_out is None and train.classes:
        unused |= {path: f"{unused[path]}; {remedy}" for path, remedy in _flat(parts.held_out, tree)}
        parts.notes += _other_part(folder, parts, train.classes, tree)
    parts.notes += [f"{path} {UNUSED}: {why}" for path, why in unused.items()]
    told = {starts["", name] for name in parts.classes}
    parts.notes += not_entered([entry for entry in left_out if entry[0] not in told])
    if train.classes:
        parts.notes += _on_both_sides(tree, starts, parts.held_out, measured)
    skipped = (entry for part in (train, held_out, *extra) if part for entry in part.skipped)
    parts.notes += filter(None, [converting(skipped, folder)])
    most = Largest.joined(largest)
    return Sources(train, held_out, _joined(extra), unlabelled_why, parts.notes, places=places, largest=most)


def _on_both_sides(
    tree: Tree, starts: Iterable[tuple[str, str]], held_out: Sequence[str], measured: str | None
) -> list[str]:
    """A line on files that are measured on and trained on as well, by links.

    Args:
        tree: of the folder.
        starts: that were listed.
        held_out: parts for that.
        measured: the one that is measured on; None: a share of the training images is.
    """
    trained = [start for start in starts if start[0] not in held_out]
    if measured is None:
        again, what = tree.again(trained), "are others once more, and may be held out while these are trained on"
    else:
        again = tree.again([start for start in starts if start[0] == measured], trained)
        what = "that are held out are trained on as well"
    return [f"{again.number:,} file(s) {what}, the first: {again.path} is {again.other}"] if again else []


def _in_one_spelling(parts: _Parts, groups: dict[str, PackedPaths]) -> dict[str, PackedPaths]:
    """The folders of classes; two whose names are the same but for Unicode's spelling are one, which is told."""
    found = in_one_spelling(groups)
    if again := [name for name in groups if name not in found]:
        parts.notes.append(f"in {parts.base} twice, in two spellings of Unicode, and one class: {few(again)}")
    return found


def _place(paths: Sequence[str]) -> str:
    """Folders, in words."""
    return few(f"{os.path.basename(path)}/" for path in paths)


def _flat(held_out: Sequence[str], tree: Tree) -> Iterator[tuple[str, str]]:
    """Held-out parts whose images lie in no folders of classes, as ImageNet's val/, and what helps."""
    for path in held_out:
        if not readable(path, tree) and any(name.lower().endswith(IMAGE_NAMES) for name in files_of(path, tree)):
            yield path, f"sort its images into {path}/CLASS/, or give {AS_LIST} as data.held_out"


def _other_part(folder: str, parts: _Parts, classes: list[str], tree: Tree) -> list[str]:
    """A line on folders beside the training part that have folders of its classes, and no name of a held-out part."""
    if parts.held_out or parts.base is None or parts.base == folder:
        return []
    beside = [os.path.join(folder, name) for name in tree.subfolders(folder) if name.lower() not in _PARTS]
    like = [path for path in beside if not set(classes).isdisjoint(readable(path, tree))]
    if not like:
        return []
    names = ", ".join(HELD_OUT[:-1])
    return [f"{few(like)} {UNUSED}: that is called {names} or {HELD_OUT[-1]}, or is data.held_out"]


def _find_parts(folder: str, tree: Tree) -> _Parts:
    """The parts by their names, and by what lies in and beside them."""
    names = tree.subfolders(folder)
    train, held_out, extra = (
        [os.path.join(folder, name) for known in kind for name in _named(folder, names, known)]
        for kind in (TRAINING, HELD_OUT, UNLABELLED)
    )
    if len(train) > 1:
        raise ValueError(f"{folder} must have one training part, got {_names(train)}")
    others = [name for name in names if name.lower() not in (*TRAINING, *_NOT_TRAINING)]
    if train and (held_out or extra or tree.subfolders(train[0])):
        return _of_classes(train[0], tree.subfolders(train[0]), tree, held_out, extra)
    if train:
        like = [name for name in others if holds_images(os.path.join(folder, name), tree)]
        if like:
            note = f"{train[0]} holds no folders, and {few(like)} beside it images: it is taken for a class like these"
            return _of_classes(folder, sorted([*others, os.path.basename(train[0])]), tree, notes=[note])
        beside = f"{train[0]} alone is trained on: no image among the first files of {few(others)} beside it"
        return _Parts(train[0], notes=[beside] if others else [])
    if (held_out or extra) and not any(may_hold_images(os.path.join(folder, name), tree) for name in others):
        others = []
    if others or not (held_out or extra):
        return _of_classes(folder, others, tree, held_out, extra)
    if extra:
        return _Parts(None, held_out=held_out, unlabelled=extra)
    if len(held_out) > 1:
        raise ValueError(
            f"{folder} must have a training part ({' or '.join(TRAINING)}), got {_names(held_out)}; "
            "to train on one of these, give it as data.root"
        )
    note = f"{folder} has no training part ({' or '.join(TRAINING)}): {held_out[0]} is trained on"
    return _of_classes(held_out[0], tree.subfolders(held_out[0]), tree, notes=[note])


def _of_classes(
    base: str,
    classes: list[str],
    tree: Tree,
    held_out: Sequence[str] = (),
    extra: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> _Parts:
    """Parts of which the training has folders.

    Raises:
        ValueError: one of these, and no other, is a data set with parts of its own, which would all be trained on.
    """
    nested = {}
    for name in classes:
        inside = {part.lower(): part for part in readable(os.path.join(base, name), tree)}
        train, rest = ([inside[part] for part in kind if part in inside] for kind in (TRAINING, _NOT_TRAINING))
        if train and rest and may_hold_images(os.path.join(base, name), tree):
            nested[name] = " and ".join([*train, *rest])
    if not nested:
        return _Parts(base, classes, [*held_out], [*extra], [*notes])
    name, parts = next(iter(nested.items()))
    if len(nested) == 1:
        below = os.path.join(base, name)
        raise ValueError(f"{base} holds a data set of its own, {name} with {parts}: give {below} as data.root")
    note = f"each of {few(nested)} in {base} is trained on as a whole, {parts} alike"
    return _Parts(base, classes, [*held_out], [*extra], [*notes, note])


def _named(folder: str, names: Sequence[str], known: str) -> list[str]:
    """The folder of that name, however it is capitalised."""
    found = [name for name in names if name.lower() == known]
    if len(found) > 1:
        raise ValueError(f"{folder} must have one folder {known!r}, whatever its capitals, got {_names(found)}")
    return found


def _names(paths: Sequence[str]) -> str:
    return " and ".join(map(os.path.basename, paths))


def _drop_repeated(folder: str, parts: _Parts) -> None:
    """Leave out held-out parts that are links to another part, or up."""
    known = lineage(folder) | ({identity(parts.base)} if parts.base else set())
    for path in list(parts.held_out):
        if (here := identity(path)) in known:
            parts.held_out.remove(path)
            real = os.path.realpath(path)
            parts.notes.append(f"{path} {UNUSED}: a link to {real}, which is used already")
        known.add(here)


def _training(
    parts: _Parts, groups: dict[str, PackedPaths], not_entered: dict[str, str], tree: Tree, check: _Check
) -> tuple[Images, str | None]:
    """The images of the folders of classes, and why they have no labels: fewer than two classes have a usable one."""
    if parts.base is None:
        return Images([], [], []), no_labels()
    found = check(parts.base, {**groups, "": tree.direct_files(parts.base)})
    no_class = [name for name in groups if found[name].files and not holds_meant(found[name])]
    passed_over = [
        (os.path.join(parts.base, name), f"{NO_IMAGES}: {len(found.pop(name).files):,} other") for name in no_class
    ]
    if no_class:
        parts.notes.append(f"no image files, so no class, in {parts.base}: {few(no_class)}")
    usable = [name for name, group in found.items() if group.is_usable]
    vanished = [
        f"{name} ({not_entered.get(os.path.join(parts.base, name), 'it holds no usable image')})"
        for name in groups
        if name in found and name not in usable
    ]
    if vanished:
        parts.notes.append(f"not a class of {parts.base}: {few(vanished)}")
    if len(usable) - ("" in usable) < 2:
        images, why = unlabelled(found, []), no_labels(usable[0] if len(usable) == 1 and usable[0] else None)
    else:
        loose = found.pop("")
        images, why = labelled(found), None
        images.skipped.extend((path, LOOSE) for path in loose.good())
    images.skipped.extend(passed_over)
    return images, why


def _held_out(
    path: str, groups: dict[str, PackedPaths], classes: list[str], tree: Tree, check: _Check
) -> tuple[Images | None, str]:
    """The images of a held-out part; None and why if it cannot be one."""
    if not groups:
        try:
            tree.subfolders(path)
        except OSError as error:
            return None, f"{FOLDER_UNREADABLE}: {error.strerror}"
        return None, "it holds no folder of a class"
    if not groups.keys() & set(classes):
        return None, f"its folders ({few(groups)}) are not of the classes that are trained on ({few(classes)})"
    found = check(path, {**groups, "": tree.direct_files(path)})
    loose = found.pop("")
    images = labelled(found, classes)
    if not images.files:
        return None, "it holds no usable image of the classes that are trained on"
    images.skipped.extend((file, LOOSE) for file in loose.good())
    return images, ""


def _loose(folder: str, tree: Tree, check: _Check) -> list[tuple[str, str]]:
    """Images directly in a folder of parts."""
    files = tree.direct_files(folder)
    return [(path, LOOSE) for path in check(folder, {"": files})[""].good()] if files else []


def _joined(parts: list[Images]) -> Images | None:
    if not parts:
        return None
    return Images(
        PackedPaths.join(part.files for part in parts),
        np.concatenate([part.labels for part in parts]),
        parts[0].classes,
        [entry for part in parts for entry in part.skipped],
    )

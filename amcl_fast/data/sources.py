"""Where a folder keeps its images: for training, held out, without labels (docs/data.md has the table)."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from amcl_fast.data.headers import SUPPORTED, BadImage, check_header
from amcl_fast.data.left_out import LOOSE, few
from amcl_fast.data.scan import Images, check_files, existing_folder, labelled, not_empty, subfolders, unlabelled
from amcl_fast.data.walk import FOLDER_UNREADABLE, LINK, SAME, identity, is_folder, lineage, list_files

TRAINING = ("train", "training")
HELD_OUT = ("test", "testing", "val", "valid", "validation")
"""In the order in which they are considered."""
UNLABELLED = ("unlabeled", "unlabelled")

_LAYOUT = f"ROOT/train/CLASS/IMAGE, ROOT/CLASS/IMAGE or images without classes, {SUPPORTED}"
_NO_LABELS = "the images have no labels"
# Files that are looked at to tell whether a folder holds images.
_MOST_LOOKS = 200


@dataclass(frozen=True)
class Sources:
    """The images of a folder.

    Attributes:
        train: images to train on; their labels are -1 where fewer than two classes have a usable one.
        held_out: images to measure on, of classes of `train`; None where no part of the folder is for them.
        unlabelled: further images to train on, without a label; None where no part of the folder is for them.
        no_labels: why the images of `train` have no labels; None if they have.
        notes: lines for the user, on folders that were not taken for what they may have been meant for.
    """

    train: Images
    held_out: Images | None
    unlabelled: Images | None
    no_labels: str | None
    notes: list[str]


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


def find_sources(root: str | Path) -> Sources:
    """Find and check the images of a folder.

    Raises:
        ValueError: it is no folder, holds no usable image, or leaves open which part of it is for what.
        OSError: it cannot be read.
    """
    folder = existing_folder(root, _LAYOUT)
    parts = _find_parts(folder)
    _drop_repeated(folder, parts)
    starts = {("", name): os.path.join(parts.base or folder, name) for name in parts.classes}
    starts |= {(path, name): os.path.join(path, name) for path in parts.held_out for name in _readable(path)}
    starts |= {(path, ""): path for path in parts.unlabelled}
    files, left_out = list_files([path for path in (folder, parts.base, *parts.held_out) if path], starts)

    train, no_labels = _training(parts, {name: files["", name] for name in parts.classes}, dict(left_out))
    extra = [unlabelled(check_files(path, {"": files[path, ""]}), train.classes) for path in parts.unlabelled]
    if parts.base != folder:
        train.skipped.extend(_loose(folder))
    train.skipped.extend(left_out)
    if not any(part.files for part in (train, *extra)):
        not_empty(Images([], [], [], [entry for part in (train, *extra) for entry in part.skipped]), folder, _LAYOUT)

    held_out = None
    for path in parts.held_out if train.classes else ():
        held_out, why = _held_out(path, {name: files[path, name] for name in _readable(path)}, train.classes)
        if held_out is not None:
            break
        parts.notes.append(f"{path} is not used as the held-out part: {why}")
    told = {starts["", name] for name in parts.classes} if train.classes else set()
    parts.notes += _not_entered([entry for entry in left_out if entry[0] not in told])
    return Sources(train, held_out, _joined(extra), no_labels, parts.notes)


def _find_parts(folder: str) -> _Parts:
    """The parts by their names, and by what lies in and beside them."""
    names = subfolders(folder)
    train, held_out, extra = (
        [os.path.join(folder, name) for known in kind for name in _named(folder, names, known)]
        for kind in (TRAINING, HELD_OUT, UNLABELLED)
    )
    if len(train) > 1:
        raise ValueError(f"{folder} must have one training part, got {_names(train)}")
    others = [name for name in names if name.lower() not in (*TRAINING, *HELD_OUT, *UNLABELLED)]
    if held_out or extra or train:
        if train and (held_out or extra or subfolders(train[0])):
            return _Parts(train[0], subfolders(train[0]), held_out, extra)
        # What holds labels or lists is no class.
        others = [name for name in others if _holds_images(os.path.join(folder, name))]
    if train and not others:
        return _Parts(train[0], [], held_out, extra)
    if train:
        note = f"{train[0]} holds no folders, and {few(others)} beside it images: it is taken for a class like these"
        return _Parts(folder, sorted([*others, os.path.basename(train[0])]), notes=[note])
    if others or not (held_out or extra):
        _refuse_data_set_below(folder, others)
        return _Parts(folder, others, held_out, extra)
    if extra:
        return _Parts(None, unlabelled=extra)
    if len(held_out) > 1:
        raise ValueError(
            f"{folder} must have a training part ({' or '.join(TRAINING)}), got {_names(held_out)}; "
            "to train on one of these, give it as data.root"
        )
    note = f"{folder} has no training part ({' or '.join(TRAINING)}): {held_out[0]} is trained on"
    return _Parts(held_out[0], subfolders(held_out[0]), notes=[note])


def _named(folder: str, names: Sequence[str], known: str) -> list[str]:
    """The folder of that name, however it is capitalised."""
    found = [name for name in names if name.lower() == known]
    if len(found) > 1:
        raise ValueError(f"{folder} must have one folder {known!r}, whatever its capitals, got {_names(found)}")
    return found


def _names(paths: Sequence[str]) -> str:
    return " and ".join(map(os.path.basename, paths))


def _refuse_data_set_below(folder: str, names: Sequence[str]) -> None:
    """Parts one folder down would all be trained on, the held-out one too."""
    if len(names) == 1:
        below = os.path.join(folder, names[0])
        inside = {name.lower() for name in _readable(below)}
        if inside & set(TRAINING) and inside & {*HELD_OUT, *UNLABELLED}:
            raise ValueError(f"{folder} holds nothing but a data set of its own, {names[0]}: give {below} as data.root")


def _drop_repeated(folder: str, parts: _Parts) -> None:
    """Leave out held-out parts that are links to another part, or up."""
    known = lineage(folder) | ({identity(parts.base)} if parts.base else set())
    for path in list(parts.held_out):
        if (here := identity(path)) in known:
            parts.held_out.remove(path)
            real = os.path.realpath(path)
            parts.notes.append(f"{path} is not used as the held-out part: a link to {real}, which is used already")
        known.add(here)


def _training(parts: _Parts, groups: dict[str, list[str]], not_entered: dict[str, str]) -> tuple[Images, str | None]:
    """The images of the folders of classes, and why they have no labels: fewer than two classes have a usable one."""
    if parts.base is None:
        return Images([], [], []), _NO_LABELS
    found = check_files(parts.base, {**groups, "": _direct_files(parts.base)})
    usable = [name for name, verdicts in found.items() if any(reason is None for _, reason in verdicts)]
    if len(usable) - ("" in usable) < 2:
        alone = len(usable) == 1 and usable[0]
        return unlabelled(found, []), f"all images are of one class, {alone!r}" if alone else _NO_LABELS
    loose = found.pop("")
    images = labelled(found)
    images.skipped.extend((path, LOOSE) for path, reason in loose if reason is None)
    vanished = [
        f"{name} ({not_entered.get(os.path.join(parts.base, name), 'it holds no usable image')})"
        for name in groups
        if name not in images.classes
    ]
    if vanished:
        parts.notes.append(f"not a class of {parts.base}: {few(vanished)}")
    return images, None


def _held_out(path: str, groups: dict[str, list[str]], classes: list[str]) -> tuple[Images | None, str]:
    """The images of a held-out part; None and why if it cannot be one."""
    if not groups:
        try:
            subfolders(path)
        except OSError as error:
            return None, f"{FOLDER_UNREADABLE}: {error.strerror}"
        return None, "it holds no folder of a class"
    if not groups.keys() & set(classes):
        return None, f"its folders ({few(groups)}) are not of the classes that are trained on ({few(classes)})"
    found = check_files(path, {**groups, "": _direct_files(path)})
    loose = found.pop("")
    images = labelled(found, classes)
    if not images.files:
        return None, "it holds no usable image of the classes that are trained on"
    images.skipped.extend((file, LOOSE) for file, reason in loose if reason is None)
    return images, ""


def _loose(folder: str) -> list[tuple[str, str]]:
    """Images directly in a folder of parts."""
    files = _direct_files(folder)
    return [(path, LOOSE) for path, reason in check_files(folder, {"": files})[""] if reason is None] if files else []


def _joined(parts: list[Images]) -> Images | None:
    if not parts:
        return None
    return Images(
        [path for part in parts for path in part.files],
        [label for part in parts for label in part.labels],
        parts[0].classes,
        [entry for part in parts for entry in part.skipped],
    )


def _not_entered(left_out: list[tuple[str, str]]) -> list[str]:
    """A line on links that were not followed, and one on folders that cannot be read."""
    links = [entry for entry in left_out if entry[1].startswith((LINK, SAME))]
    unreadable = [entry for entry in left_out if entry[1].startswith(FOLDER_UNREADABLE)]
    return [
        f"{len(found):,} {what}, the first: {found[0][0]}: {found[0][1]}"
        for found, what in ((links, "link(s) to folders not followed"), (unreadable, "folder(s) left out"))
        if found
    ]


def _readable(folder: str) -> list[str]:
    """Names of the folders in a folder; none if it cannot be read."""
    with suppress(OSError):
        return subfolders(folder)
    return []


def _direct_files(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.path for entry in entries if not entry.name.startswith(".") and not is_folder(entry))


def _holds_images(folder: str) -> bool:
    """Whether an image is among the first files of a folder or below."""
    files, _ = list_files([], {"": folder})
    for path in files[""][:_MOST_LOOKS]:
        with suppress(BadImage):
            check_header(path)
            return True
    return False

"""What data.root may be beside a name: a folder of images, a list of files, or shards (docs/data.md has them all)."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from amcl_fast.data.locations import shown
from amcl_fast.data.packed_paths import PackedPaths
from amcl_fast.data.scan.classes import scan_largest
from amcl_fast.data.scan.headers import IMAGE_NAMES, SUPPORTED
from amcl_fast.data.scan.images import Images, not_empty
from amcl_fast.data.scan.largest import Largest
from amcl_fast.data.scan.limits import DEFAULT_LIMITS, Limits
from amcl_fast.data.scan.walk import Tree, is_folder
from amcl_fast.data.shards.patterns import existing, expand, is_compressed, is_pattern, is_tar, once, refuse_compressed
from amcl_fast.data.shards.read import read_shards
from amcl_fast.data.sources.folder import (
    HELD_OUT,
    TRAINING,
    UNLABELLED,
    UNUSED,
    Sources,
    find_sources,
)
from amcl_fast.data.sources.glance import may_hold_images
from amcl_fast.data.sources.lists import Listed, read_lines, read_list
from amcl_fast.left_out import FOLDER_UNREADABLE, few, not_entered

_IN_SHARDS = f"samples KEY.jpg and, if they have a class, KEY.cls, {SUPPORTED}"
_IN_LISTS = f"a path a line, and its label if it has one, {SUPPORTED}"
_PARTS = (*TRAINING, *HELD_OUT, *UNLABELLED)
_WORDS = re.compile(r"[^\W\d_]+")

_Name = Callable[[int], str]


@dataclass
class _Shards:
    """Tars, by what they are for.

    Attributes:
        where: how they were given.
        train, unlabelled: paths.
        held_out: paths of every part, by its name.
        missing: (path, reason).
        notes: lines for the user.
    """

    where: str
    train: list[str] = field(default_factory=list)
    unlabelled: list[str] = field(default_factory=list)
    held_out: dict[str, list[str]] = field(default_factory=dict)
    missing: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


_Choice = Callable[[str, dict[str, list[str]]], _Shards]


def find_images(
    root: str | Path, held_out: str | Path | None = None, *, tell: bool = True, limits: Limits = DEFAULT_LIMITS
) -> Sources:
    """Find and check the images of a folder, a list or shards.

    Args:
        root: a folder, a list of files or of tars, a tar, or a pattern of tars.
        held_out: the same, of images to measure on, in place of what `root` has for that.
        tell: show how far it has come, should it take long.
        limits: what is too large.

    Raises:
        ValueError: it holds no usable image, is not to be understood, or leaves open which part of it is for what.
        OSError: it cannot be read.
    """
    found, name = _find(os.fspath(root), tell, limits)
    if held_out is None:
        return found
    if not found.train.classes:
        raise ValueError(f"data.held_out must be of the classes of {root}, which has none: {found.no_labels}")
    images, why, notes, largest = _measured(os.fspath(held_out), found.train.classes, name, tell, limits)
    if images is None:
        raise ValueError(f"data.held_out, {held_out}, cannot be measured on: {why}")
    notes[:0] = [note for note in found.notes if UNUSED not in note]
    if again := _trained_on(found.train.files, images.files):
        notes.append(f"{len(again):,} image(s) of {held_out} are trained on as well, the first: {shown(again[0])}")
    places = {**found.places, "held_out": _last(held_out)}
    most = Largest.joined([found.largest, largest])
    return Sources(found.train, images, found.unlabelled, found.no_labels, notes, places=places, largest=most)


def _find(root: str, tell: bool, limits: Limits) -> tuple[Sources, _Name]:
    """The images of a path, and what numbers of classes are called there."""
    given = _given(root, _to_train)
    if isinstance(given, _Shards):
        return _of_shards(given, tell, limits)
    if given is None:
        return find_sources(root, tell=tell, limits=limits), str
    found = read_list(root, given, tell, limits)
    train, no_labels = found.training()
    not_empty(train, root, _IN_LISTS)
    places = {"train": _last(root)}
    return Sources(train, None, None, no_labels, found.notes, places=places, largest=found.largest), str


def _measured(
    root: str, classes: list[str], name: _Name, tell: bool, limits: Limits
) -> tuple[Images | None, str, list[str], Largest]:
    """The images of some classes at a path of any kind; None and why if there are none; lines for the user; the largest
    of all that lie there."""
    given = _given(root, _to_measure)
    if isinstance(given, _Shards):
        found = read_shards(given.train, name, tell, limits)
        found.left_out.extend(given.missing)
        found.notes[:0] = given.notes
    elif given is not None:
        found = read_list(root, given, tell, limits)
    else:
        scanned, largest = scan_largest(_held_out_part(root, classes), classes, tell, limits)
        return scanned, "", not_entered(scanned.skipped), largest
    images, why = found.measured(classes)
    return images, why, found.notes, found.largest


def _trained_on(train: PackedPaths, held_out: PackedPaths) -> list[str]:
    """Locations that are in both."""
    trained, found = dict(train.by_prefix()), []
    for prefix, places in held_out.by_prefix():
        if prefix in trained:
            here = {*train.take(trained[prefix])}
            found += [location for location in held_out.take(places) if location in here]
    return found


def _held_out_part(folder: str, classes: list[str]) -> str:
    """The folder of classes in a folder: the first held-out part of one that has no folder of a class."""
    names = Tree().subfolders(folder) if os.path.isdir(folder) else []
    if set(classes).isdisjoint(names):
        for part in HELD_OUT:
            for name in names:
                if name.lower() == part:
                    return os.path.join(folder, name)
    return folder


def _last(path: str | Path) -> str:
    """The end of a path, in words; of a folder with its slash."""
    return f"{os.path.basename(os.path.abspath(path))}{'/' * os.path.isdir(path)}"


def _of_shards(shards: _Shards, tell: bool, limits: Limits) -> tuple[Sources, _Name]:
    found = read_shards(shards.train, tell=tell, limits=limits)
    train, no_labels = found.training()
    train.skipped.extend(shards.missing)
    notes = [*shards.notes, *found.notes]
    extra, largest = None, [found.largest]
    if shards.unlabelled:
        unlabelled = read_shards(shards.unlabelled, tell=tell, limits=limits)
        extra = unlabelled.unlabelled(train.classes)
        largest.append(unlabelled.largest)
    if extra is None or not extra.files:
        not_empty(train, shards.where, _IN_SHARDS)
    places = {"train": _shards(shards.train), "unlabelled": _shards(shards.unlabelled)}
    images, why = None, "the training has no classes"
    for part, paths in shards.held_out.items():
        if train.classes:
            held = read_shards(paths, found.name, tell, limits)
            images, why = held.measured(train.classes)
            notes += held.notes
            largest.append(held.largest)
        if images is not None:
            places["held_out"] = f"{_shards(paths)} of {part}"
            break
        notes.append(f"the shards of {part} in {shards.where} are not used as the held-out part: {why}")
    most = Largest.joined(largest)
    return Sources(train, images, extra, no_labels, notes, places=places, largest=most), found.name


def _shards(paths: list[str]) -> str:
    return f"{len(paths):,} shard{'s' * (len(paths) != 1)}"


def _given(root: str, choose: _Choice) -> _Shards | Listed | None:
    """The shards that a path stands for, of those of a folder what `choose` takes; or a list of images.

    None if it is neither: a folder of images, or not there.
    """
    refuse_compressed([root] if os.path.isfile(root) else [])
    if is_pattern(root):
        paths = expand(os.path.abspath(root))
    elif os.path.isdir(root):
        return _shards_of_folder(os.path.abspath(root), choose)
    elif is_tar(root):
        paths = [os.path.abspath(root)]
    elif not os.path.isfile(root):
        return None
    elif not (listed := read_lines(root)).tars:
        return listed
    else:
        paths = [path for line in listed.paths for path in (expand(line) if is_pattern(line) else [line])]
    there, missing, notes = existing(paths, root)
    return _Shards(root, there, missing=missing, notes=notes)


def _shards_of_folder(folder: str, choose: _Choice) -> _Shards | None:
    """The shards in a folder, or in folders of its parts; which part they are of their names say.

    None if there are none, or if images lie in it or in folders beside them.

    Raises:
        OSError: it cannot be read, or its part for training.
    """
    tree = Tree()
    tars, folders = _tars(folder, tree)
    if tars is None:
        return None
    parts: dict[str, list[str]] = {}
    for path in tars:
        words = [word.lower() for word in _WORDS.findall(os.path.basename(path))]
        parts.setdefault(next((word for word in words if word in _PARTS), ""), []).append(path)
    others, unreadable = [], []
    for path in folders:
        if (name := os.path.basename(path).lower()) in _PARTS:
            try:
                inside, _ = _tars(path, tree)
            except OSError as error:
                if name in TRAINING:
                    raise
                unreadable.append((path, f"{FOLDER_UNREADABLE}: {error.strerror}"))
                continue
            parts.setdefault(name, []).extend(inside or ())
            others += [] if inside else [path]
    parts = {name: paths for name, paths in parts.items() if paths}
    if not parts:
        return None
    notes = []
    for name, paths in parts.items():
        parts[name], repeated = once(paths, folder)
        notes += repeated
    shards = choose(folder, parts)
    shards.notes += notes + not_entered(unreadable)
    shards.missing += unreadable
    if others:
        shards.notes.append(f"no shards in {few(others)}: given as data.held_out, it may be of another kind")
    return shards


def _tars(folder: str, tree: Tree) -> tuple[list[str] | None, list[str]]:
    """The tars in a folder, and the folders in it; None if images lie beside the tars or in the folders.

    Raises:
        ValueError: nothing but compressed tars is there.
        OSError: it cannot be read.
    """
    tars, folders, packed = [], [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.lower().endswith(IMAGE_NAMES):
                return None, []
            if is_folder(entry):
                folders.append(entry.path)
            elif is_tar(entry.path):
                tars.append(entry.path)
            elif is_compressed(entry.path):
                packed.append(entry.path)
    if (tars or packed) and any(may_hold_images(path, tree) for path in folders):
        return None, []
    refuse_compressed([] if tars or folders else sorted(packed))
    return sorted(tars), sorted(folders)


def _to_measure(folder: str, parts: dict[str, list[str]]) -> _Shards:
    """The shards of the first held-out part; where none is, all of them."""
    name = next((name for name in HELD_OUT if name in parts), None)
    return _Shards(folder, parts[name] if name else [path for paths in parts.values() for path in paths])


def _to_train(folder: str, parts: dict[str, list[str]]) -> _Shards:
    """Shards by what they are for.

    Raises:
        ValueError: the names of the parts leave open what is for training.
    """
    held_out = [name for name in HELD_OUT if name in parts]
    train = [name for name in TRAINING if name in parts]
    shards = _Shards(folder, unlabelled=[path for name in UNLABELLED for path in parts.get(name, ())])
    if len(train) > 1:
        raise ValueError(f"{folder} must have shards of one training part, got {' and '.join(train)}")
    if train and "" in parts:
        shards.notes.append(f"not used, beside the shards of {train[0]}: {few(map(os.path.basename, parts['']))}")
    if train or "" in parts:
        shards.train = parts[train[0] if train else ""]
    elif not shards.unlabelled:
        if len(held_out) > 1:
            raise ValueError(
                f"{folder} must have shards for training ({' or '.join(TRAINING)}), got {' and '.join(held_out)}; to "
                "train on one of these, give its pattern as data.root"
            )
        shards.notes.append(
            f"{folder} has no shards for training ({' or '.join(TRAINING)}): {held_out[0]} is trained on"
        )
        shards.train = parts[held_out.pop()]
    shards.held_out = {name: parts[name] for name in held_out}
    return shards

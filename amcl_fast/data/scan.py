"""Find the images of a folder of classes, and those that would end a run, before the run."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from amcl_fast.data.cache import cache_folder, write_whole
from amcl_fast.data.headers import SUPPORTED, UNREADABLE, BadImage, check_header
from amcl_fast.data.left_out import of_other_class
from amcl_fast.data.walk import Tree, list_files

log = logging.getLogger(__name__)

_LAYOUT = f"ROOT/CLASS/IMAGE, with {SUPPORTED} images"
_CACHE_VERSION = 3
_UNDECODABLE = "corrupt: it cannot be decoded"

Verdicts = dict[str, list[tuple[str, str | None]]]
"""Groups of files: the path of each, and None or why it cannot be used."""

_Stamp = tuple[int, int]  # size, mtime in ns


@dataclass(frozen=True)
class Images:
    """Image files with their labels, ordered by class and path.

    Attributes:
        files: paths.
        labels: index into `classes` for each file; -1 for an image without a label.
        classes: names of the classes.
        skipped: (path, reason) for each file left out.
    """

    files: list[str]
    labels: list[int]
    classes: list[str]
    skipped: list[tuple[str, str]] = field(default_factory=list)

    @cached_property
    def fingerprint(self) -> str:
        """The same for the same labels and names in the same order, wherever the folder is."""
        digest = hashlib.sha256()
        for path, label in zip(self.files, self.labels, strict=True):
            digest.update(f"{label}/{os.path.basename(path)}\0".encode())
        return digest.hexdigest()

    def subset(self, indices: Iterable[int]) -> "Images":
        """The images at `indices`, with nothing skipped."""
        chosen = list(indices)
        return Images([self.files[i] for i in chosen], [self.labels[i] for i in chosen], self.classes)


def scan_classes(root: str | Path, classes: list[str] | None = None) -> Images:
    """Find and check the images of root/CLASS/..., sub-folders included.

    Files and folders whose name begins with a dot are ignored, and folders that systems leave behind (`Tree`). Each
    other file is judged by its content: truncated, empty, fake, unsupported and dangling ones are left out and listed,
    and so are folders that cannot be read or are there already (`list_files`). Damage in the middle of a file is not
    seen here. Verdicts are kept in the cache folder, by path, size and time of change.

    Args:
        root: the folder of classes.
        classes: the classes' names, to number the labels by; images of other classes are left out and listed.
            Default: the names of the folders that hold at least one good image, sorted.

    Raises:
        ValueError: `root` is no folder, holds no folder of a class, or no good image.
    """
    folder = existing_folder(root, _LAYOUT)
    tree = Tree()
    names = tree.subfolders(folder)
    if not names:
        raise ValueError(f"{folder} holds no folder of a class; expected {_LAYOUT}")
    files, left_out = list_files([folder], {name: os.path.join(folder, name) for name in names}, tree)
    images = labelled(check_files(folder, files), classes)
    images.skipped.extend(left_out)
    return not_empty(images, folder, _LAYOUT)


def labelled(found: Verdicts, classes: list[str] | None = None) -> Images:
    """Images of groups of files, a class each.

    Args:
        found: of each group, by the name of its class.
        classes: as for `scan_classes`.
    """
    if classes is None:
        classes = sorted(name for name, verdicts in found.items() if any(reason is None for _, reason in verdicts))
    numbers = {name: number for number, name in enumerate(classes)}
    images = Images([], [], classes)
    for name in sorted(found):
        for path, reason in found[name]:
            if reason is None and name not in numbers:
                reason = of_other_class(name)
            _add(images, path, reason, numbers.get(name, -1))
    return images


def unlabelled(found: Verdicts, classes: list[str]) -> Images:
    """Images of groups of files, without a label."""
    images = Images([], [], classes)
    for path, reason in sorted(verdict for verdicts in found.values() for verdict in verdicts):
        _add(images, path, reason, -1)
    return images


def _add(images: Images, path: str, reason: str | None, label: int) -> None:
    if reason is None:
        images.files.append(path)
        images.labels.append(label)
    else:
        images.skipped.append((path, reason))


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


def check_files(folder: str, groups: dict[str, list[str]]) -> Verdicts:
    """Judge files below `folder`, from the cache where one has not changed.

    Args:
        folder: the cache has a file for each.
        groups: lists of files by any name.

    Returns:
        (path, None or why it cannot be used) of every file of every group.
    """
    cache = cache_folder() / "scans" / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]}.json"
    known = _load(cache)
    verdicts: dict[str, tuple[_Stamp | None, str | None]] = {}
    doubtful: list[str] = []

    def check_group(files: list[str]) -> None:
        for path in files:
            stamp = _stamp(path)
            old = known.get(path[len(folder) :])
            if old is not None and stamp is not None and old[:2] == [*stamp]:
                verdicts[path] = stamp, old[2]
                continue
            reason = None
            try:
                path.encode()
                if not check_header(path):
                    doubtful.append(path)
            except UnicodeEncodeError:
                reason = "its name is not valid UTF-8"
            except BadImage as problem:
                reason = str(problem)
                if reason.startswith(UNREADABLE):
                    stamp = None  # as of all that may pass, no verdict is kept
            verdicts[path] = stamp, reason

    # Threads hide the latency of network folders; on a local disk the interpreter is the limit.
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check_group, groups.values()))
    if doubtful:
        from amcl_fast.data.decodable import find_undecodable

        for path, certain in find_undecodable(sorted(doubtful)).items():
            verdicts[path] = verdicts[path][0] if certain else None, _UNDECODABLE
    entries = {path[len(folder) :]: [*stamp, reason] for path, (stamp, reason) in verdicts.items() if stamp}
    if entries != known:
        _save(cache, folder, entries)
    return {name: [(path, verdicts[path][1]) for path in files] for name, files in groups.items()}


def _stamp(path: str) -> _Stamp | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _load(cache: Path) -> dict[str, list]:
    try:
        content = json.loads(cache.read_bytes())
        return content["files"] if content["version"] == _CACHE_VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _save(cache: Path, folder: str, entries: dict[str, list]) -> None:
    try:
        write_whole(cache, json.dumps({"version": _CACHE_VERSION, "folder": folder, "files": entries}).encode())
    except OSError as error:
        log.warning("the scan of %s cannot be kept, so every run repeats it: %s", folder, error)

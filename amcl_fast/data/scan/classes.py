"""Find the images of a folder of classes, and those that would end a run, before the run."""

import os
from pathlib import Path

from amcl_fast.data.scan.check import check_files
from amcl_fast.data.scan.headers import SUPPORTED
from amcl_fast.data.scan.images import Images, in_one_spelling, labelled, not_empty
from amcl_fast.data.scan.largest import Largest
from amcl_fast.data.scan.limits import DEFAULT_LIMITS, Limits
from amcl_fast.data.scan.walk import Tree, list_files
from amcl_fast.progress import Progress

_LAYOUT = f"ROOT/CLASS/IMAGE, with {SUPPORTED} images"
AS_LIST = "a CSV file with a path and a class a line"
"""In place of folders."""


def scan_classes(
    root: str | Path, classes: list[str] | None = None, *, tell: bool = True, limits: Limits = DEFAULT_LIMITS
) -> Images:
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
        limits: what is too large.

    Raises:
        ValueError: `root` is no folder, holds no folder of a class, or no good image.
    """
    return scan_largest(root, classes, tell, limits)[0]


def scan_largest(root: str | Path, classes: list[str] | None, tell: bool, limits: Limits) -> tuple[Images, Largest]:
    """The same, and the largest images."""
    folder = existing_folder(root, _LAYOUT)
    with listing(tell) as progress:
        tree = Tree(progress.add)
        names = tree.subfolders(folder)
        if not names:
            raise ValueError(f"{folder} holds no folder of a class; expected {_LAYOUT}, or {AS_LIST}")
        files, left_out = list_files([folder], {name: os.path.join(folder, name) for name in names}, tree)
    found = check_files(folder, in_one_spelling(files, classes or ()), tell, limits)
    images = labelled(found, classes)
    images.skipped.extend(left_out)
    return not_empty(images, folder, _LAYOUT), Largest.joined(group.largest for group in found.values())


def listing(tell: bool) -> Progress:
    """Counts the files that a `Tree` finds."""
    return Progress("listing files", shown=tell)


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

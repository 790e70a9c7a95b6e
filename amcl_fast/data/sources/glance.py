"""Whether a folder holds images, as far as a glance tells: by the names of its files, or by what the first contain."""

import os
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice

from amcl_fast.data.scan.headers import IMAGE_NAMES, NO_IMAGE, BadImage, check_header, unsupported
from amcl_fast.data.scan.images import Group
from amcl_fast.data.scan.walk import Tree

# Files, and folders, that are looked at to tell whether a folder holds images.
_MOST_LOOKS = 200


def readable(folder: str, tree: Tree) -> list[str]:
    """Names of the folders in a folder; none if it cannot be read."""
    with suppress(OSError):
        return tree.subfolders(folder)
    return []


def files_of(folder: str, tree: Tree) -> Sequence[str]:
    """Paths of the files in a folder; none if it cannot be read."""
    with suppress(OSError):
        return tree.direct_files(folder)
    return []


def holds_meant(group: Group) -> bool:
    """Whether a file is an image, or a damaged one by its name; one without an ending by what it begins with."""
    return group.is_usable or any(_meant_as_image(*entry) for entry in group.left_out())


def _meant_as_image(path: str, reason: str) -> bool:
    ending = os.path.splitext(path)[1].lower()
    return ending in IMAGE_NAMES or bool(unsupported(reason)) or not (ending or reason.startswith(NO_IMAGE))


def may_hold_images(folder: str, tree: Tree) -> bool:
    """Whether a folder holds an image by the names of its files, or by the content of the first, or cannot be read."""
    try:
        for number, path in enumerate(tree.files_below(folder, strict=True)):
            if path.lower().endswith(IMAGE_NAMES) or (number < _MOST_LOOKS and _is_image(path)):
                return True
    except OSError:
        return True
    return False


def holds_images(folder: str, tree: Tree) -> bool:
    """Whether an image is among the first files of a folder or below."""
    return any(map(_is_image, islice(tree.files_below(folder, _MOST_LOOKS), _MOST_LOOKS)))


def _is_image(path: str) -> bool:
    with suppress(BadImage):
        check_header(path)
        return True
    return False

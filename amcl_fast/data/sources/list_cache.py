"""What was found of a data set, once a machine: one process looks and keeps it, the others map the same file.

A list is named by its content, so none that a process has mapped is ever replaced, and machines that share the cache
folder do not get into each other's way. A pointer, of a machine and a data set, holds the name of the latest one.
"""

import hashlib
import logging
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from amcl_fast.data import array_files
from amcl_fast.data.cache import cache_folder, in_use, remove_old, write_whole
from amcl_fast.data.packed_paths import PackedPaths
from amcl_fast.data.scan.images import Images
from amcl_fast.data.scan.largest import Largest
from amcl_fast.data.sources.folder import Sources
from amcl_fast.runs.reading import read_utf8

log = logging.getLogger(__name__)

_KIND = "images 3"
_NAME = re.compile(r"[0-9a-f]{64}")
_PARTS = ("train", "held_out", "unlabelled")


def keep(data_set: str, sources: Sources) -> Sources:
    """Keep what was found for the other processes of this machine.

    Args:
        data_set: what the images were found by; the others ask with the same text.
        sources: the images.

    Returns:
        The same images with the name of their list, out of the file that is kept if the cache can be written.
    """
    content = _encode(sources)
    path, pointer = _list(content.digest), _pointer(data_set)
    try:
        try:
            found = _load(content.digest)
        except (FileNotFoundError, ValueError) as error:
            if isinstance(error, ValueError):
                path.unlink(missing_ok=True)  # damaged; what another process writes meanwhile is not
            write_whole(path, content.pieces, replace=False)
            found = _load(content.digest)
            remove_old()
        write_whole(pointer, content.digest.encode())
        return found
    except (OSError, ValueError) as error:
        # The scan has told it already, and a run of one process needs no list.
        log.debug("the list of images cannot be kept, so every process looks for itself: %s", error)
        return replace(sources, name=content.digest)


def kept(data_set: str) -> Sources | None:
    """What another process of this machine has kept last; None if there is nothing, or it is damaged.

    It may be of an earlier run, whose images were others: `Sources.name` tells. Nothing but the list is looked at.
    """
    try:
        pointer = _pointer(data_set)
        name = read_utf8(pointer)
        if not _NAME.fullmatch(name):
            return None
        found = _load(name)
        in_use(pointer)
        return found
    except (OSError, ValueError):
        return None


def machine() -> str:
    """Whose lists `kept` finds."""
    return socket.gethostname()


def _load(name: str) -> Sources:
    """The images of a list.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    path = _list(name)
    found = replace(_decode(*array_files.read(path)), name=name)
    in_use(path)
    return found


def _encode(sources: Sources) -> array_files.Encoded:
    found = {name: part for name in _PARTS if (part := getattr(sources, name)) is not None}
    files = PackedPaths.join(part.files for part in found.values()).compact()
    labels = np.concatenate([part.labels for part in found.values()]).astype(np.int32)
    header = {
        "kind": _KIND,
        "parts": {
            name: [len(part.files), part.fingerprint, part.classes, part.skipped] for name, part in found.items()
        },
        "no_labels": sources.no_labels,
        "notes": sources.notes,
        "places": sources.places,
        "largest": sources.largest,
    }
    return array_files.encode(header, {**files.arrays, "labels": labels})


def _decode(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Sources:
    """The images of a file.

    Raises:
        ValueError: it holds none.
    """
    try:
        if header["kind"] != _KIND:
            raise ValueError("of another version")
        files, labels = PackedPaths(arrays), arrays["labels"]
        found: dict[str, Images | None] = dict.fromkeys(_PARTS)
        begin = 0
        for name, (count, fingerprint, classes, skipped) in header["parts"].items():
            here = slice(begin, begin + count)
            entries = [(path, reason) for path, reason in skipped]
            found[name] = Images(files[here], labels[here], classes, entries, fingerprint)
            begin += count
            if count and (labels[here].min() < -1 or labels[here].max() >= len(classes)):
                raise ValueError("a label of no class")
        if begin != len(files) or found["train"] is None:
            raise ValueError("not whole")
        texts = {name: header[name] for name in ("no_labels", "notes", "places")}
        return Sources(**found, **texts, largest=Largest(*header["largest"]))  # type: ignore[arg-type]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no list of images: {error}") from None


def _folder() -> Path:
    return cache_folder() / "lists"


def _list(name: str) -> Path:
    return _folder() / f"{name}.images"


def _pointer(data_set: str) -> Path:
    whose = os.fsencode(f"{machine()}\0{data_set}")
    return _folder() / f"{hashlib.sha256(whose).hexdigest()[:32]}.latest"

"""Folders of images in tests: what was found in them and said of others, how they are filled and made unreadable."""

import os
from pathlib import Path

from tests.helpers.small_shards import noise

ANT_BEE = ("ant", "bee")


def shown(images):
    """Class (None without a label) to the number of images."""
    counts = {}
    for label in images.labels:
        name = images.classes[label] if label >= 0 else None
        counts[name] = counts.get(name, 0) + 1
    return counts


def unreadable(monkeypatch, folder):
    scandir = os.scandir

    def refuse(path):
        if str(path) == str(folder):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)


def scandirs(monkeypatch, root):
    """The folders below that are read from now on, by their real paths."""
    scandir, read = os.scandir, []

    def record(path):
        if os.path.realpath(path).startswith(str(root)):
            read.append(os.path.realpath(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", record)
    return read


def reasons(images, root):
    return {os.path.relpath(path, root): reason for path, reason in images.skipped}


def content(folder):
    """The bytes of each file, by its name."""
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def folder_of(root, classes):
    """Four JPEGs of noise of each class, the same ones whatever its name."""
    for number, name in enumerate(classes):
        for image in range(4):
            (root / name).mkdir(parents=True, exist_ok=True)
            (root / name / f"{image}.jpg").write_bytes(noise(10 * number + image))
    return root

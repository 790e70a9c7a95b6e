"""A tar of samples while it is written."""

import tarfile
from pathlib import Path

from amcl_fast.data.shards.manifest import Shard
from amcl_fast.data.shards.tar import BLOCK
from amcl_fast.runs.files import NewFile

RECORD = 20 * BLOCK
"""Tars end at a multiple of it."""


class Writer:
    """A shard while it is written, under another name."""

    def __init__(self, path: Path) -> None:
        self._new = NewFile(path, durable=True)
        self._bytes = self.images = self.taken = 0
        self.left_out: list[tuple[str, str]] = []

    def has_room(self, size: int, most_images: float, most_bytes: float) -> bool:
        """Whether an image of so many bytes belongs here; the first one does, whatever its size."""
        after = _padded(self._bytes + 3 * BLOCK + size, BLOCK) + 2 * BLOCK
        return not self.images or (self.images < most_images and _padded(after, RECORD) <= most_bytes)

    def add(self, key: str, content: bytes, ending: str, label: int) -> None:
        """Append a sample; its label, if it has one, goes before it, as names are sorted."""
        if label >= 0:
            self._member(f"{key}.cls", str(label).encode())
        self._member(f"{key}.{ending}", content)
        self.images += 1

    def _member(self, name: str, content: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        padding = bytes(-len(content) % BLOCK)
        self._write(info.tobuf(tarfile.USTAR_FORMAT) + content + padding)

    def _write(self, content: bytes) -> None:
        self._new.write(content)
        self._bytes += len(content)

    def finish(self) -> Shard:
        """Give it its name."""
        self._write(bytes(_padded(self._bytes + 2 * BLOCK, RECORD) - self._bytes))
        self._new.finish()
        return Shard(self._new.path.name, self.images, self._bytes, self.taken, self.left_out)

    def give_up(self) -> None:
        """Write no more."""
        self._new.give_up()


def _padded(size: int, to: int) -> int:
    return -(-size // to) * to

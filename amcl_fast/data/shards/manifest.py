"""What is known of a folder in which `pack` writes: with which settings, and which shards are whole."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from amcl_fast.data.scan.walk import Tree
from amcl_fast.runs.files import PARTIAL, write_file
from amcl_fast.runs.reading import read_json

MANIFEST = "manifest.json"

_FORMAT = 2
_MOST_BYTES = 1 << 30
"""Of the file: a name and a few numbers for each shard, and what was left out."""


@dataclass
class Shard:
    """A shard that is whole, as the manifest has it.

    Attributes:
        name: of its file.
        images: in it.
        bytes: of it.
        taken: images of the source that were looked at for it.
        left_out: those of them that are not in it, and why.
    """

    name: str
    images: int
    bytes: int
    taken: int
    left_out: list[tuple[str, str]]


def read_manifest(folder: Path) -> dict[str, Any]:
    """What is known of a folder in which packing has begun; {} of one that is empty or not there."""
    try:
        manifest = read_json(folder / MANIFEST, most=_MOST_BYTES)
        if manifest["format"] != _FORMAT:
            raise ValueError
        return dict(manifest)
    except FileNotFoundError:
        if folder.is_dir() and _holds_something(folder):
            raise ValueError(
                f"{folder} must be empty or not there, or begun by the same command; it holds other files"
            ) from None
        return {}
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{folder / MANIFEST} is not of this version of amcl-fast pack: give another target") from None


def _holds_something(folder: Path) -> bool:
    """Whether a folder holds more than what systems leave there (lost+found), and what an interruption has left."""
    tree = Tree()
    return bool(tree.subfolders(str(folder))) or any(
        not path.endswith(PARTIAL) for path in tree.direct_files(str(folder))
    )


def check_same(folder: Path, manifest: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raise ValueError if the folder was begun with something else."""
    told = {"images": "they were other images", "class_names": "the classes had other names"}
    for name, value in settings.items():
        if manifest and manifest.get(name) != value:
            what = told.get(name, f"{name} was {manifest.get(name)}, is {value}")
            raise ValueError(f"{folder} was packed with other settings: {what}; give another target, or remove it")


def whole_shards(folder: Path, name: str, manifest: dict[str, Any]) -> list[Shard]:
    """The shards that are as the manifest says, up to the first that is not."""
    shards = []
    for entry in manifest.get("parts", {}).get(name, ()):
        shard = Shard(**entry)
        shard.left_out = [(location, reason) for location, reason in shard.left_out]
        path = folder / shard.name
        if not path.is_file() or path.stat().st_size != shard.bytes:
            break
        shards.append(shard)
    return shards


def write_manifest(
    folder: Path, source: str, settings: Mapping[str, Any], parts: Mapping[str, Sequence[Shard]], complete: bool
) -> None:
    """Write what is known.

    Args:
        folder: of the shards.
        source: from which they are packed.
        settings: that a later call must have again.
        parts: whole shards of each part.
        complete: whether these are all.
    """
    content = {
        "format": _FORMAT,
        "source": source,
        **settings,
        "complete": complete,
        "parts": {name: [asdict(shard) for shard in shards] for name, shards in parts.items()},
    }
    write_file(folder / MANIFEST, json.dumps(content, indent=1) + "\n")

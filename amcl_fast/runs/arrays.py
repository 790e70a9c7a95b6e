"""Records of arrays, dataclasses, in files of NumPy."""

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np

from .files import write_file
from .in_place import make_within


def save_arrays(record: Any, path: Path) -> None:
    """Write a record as .npz; the file appears when it is whole. Its folder is made, those above are not.

    Raises:
        OSError: it cannot be written.
    """
    make_within(path.parents[1], path.parent)
    arrays = {field.name: getattr(record, field.name) for field in fields(record)}
    write_file(path, lambda file: np.savez_compressed(file, **arrays))


def read_arrays(kind: Any, path: Path, what: str) -> dict[str, Any]:
    """Fields of a record as `save_arrays` wrote them; one with a default may be missing.

    Args:
        kind: the dataclass.
        path: of the file.
        what: such a record is, in words.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is none of these.
    """
    needed = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    with np.load(path, allow_pickle=False) as file:
        if missing := needed - set(file.files):
            raise ValueError(f"{path} is no {what}: it lacks {', '.join(sorted(missing))}")
        return {field.name: file[field.name] for field in fields(kind) if field.name in file.files}

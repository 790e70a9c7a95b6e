"""The one folder in which amcl_fast keeps what it derived; nothing is ever written beside a user's files."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path


def cache_folder() -> Path:
    """`$AMCL_FAST_CACHE`, or ~/.cache/amcl_fast. It need not exist."""
    return Path(os.environ.get("AMCL_FAST_CACHE") or Path.home() / ".cache" / "amcl_fast")


def write_whole(path: Path, content: bytes | Iterable[bytes | memoryview]) -> None:
    """Write a file, folders included, so that no other process ever sees a part of it.

    Args:
        path: of the file; a link there is replaced, not followed.
        content: of the file, in one piece or several.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise

"""The one folder in which amcl_fast keeps what it derived; nothing is ever written beside a user's files."""

import os
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from amcl_fast.runs.files import write_file

_DAY = 86_400.0  # seconds
# After which what nobody has asked for since is removed.
_KEPT = 60 * _DAY


def cache_folder() -> Path:
    """`$AMCL_FAST_CACHE`, or amcl_fast in `$XDG_CACHE_HOME`, which is ~/.cache where it is not set. It need not exist.

    A user without a home, as in a container under a number that nobody has there, has it in the folder of temporary
    files.
    """
    if own := os.environ.get("AMCL_FAST_CACHE"):
        return Path(os.path.expanduser(own))
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(shared):  # the specification has others ignored
        return Path(shared) / "amcl_fast"
    try:
        return Path.home() / ".cache" / "amcl_fast"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"amcl_fast-{os.getuid()}"


def write_whole(path: Path, content: bytes | Iterable[bytes | memoryview], *, replace: bool = True) -> None:
    """Write a file, folders included, so that no other process ever sees a part of it.

    Args:
        path: of the file; a link there is replaced, not followed.
        content: of the file, in one piece or several.
        replace: what is there already; else that stays, also where another process writes it at the same time.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, content, replace=replace)


def in_use(path: Path) -> None:
    """Note that a file of the cache has been asked for, once a day."""
    with suppress(OSError):
        if os.stat(path).st_mtime < time.time() - _DAY:
            os.utime(path)


def remove_old() -> None:
    """Remove what no run has asked for in 60 days, what writers that were killed have left included.

    Data sets, which were generated or downloaded, stay.
    """
    before = time.time() - _KEPT
    for folder in ("lists", "scans", "shards"):
        with suppress(OSError), os.scandir(cache_folder() / folder) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime < before:
                        os.unlink(entry.path)

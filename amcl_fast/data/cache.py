"""The one folder in which amcl_fast keeps what it derived; nothing is ever written beside a user's files."""

import os
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_DAY = 86_400.0  # seconds
# After which what nobody has asked for since is removed.
_KEPT = 60 * _DAY


def cache_folder() -> Path:
    """`$AMCL_FAST_CACHE`, or ~/.cache/amcl_fast. It need not exist."""
    return Path(os.environ.get("AMCL_FAST_CACHE") or Path.home() / ".cache" / "amcl_fast")


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
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
        if replace or not _linked(temporary, path):
            os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _linked(temporary: str, path: Path) -> bool:
    """Give a file its name, unless that is taken; whether the file system has hard links."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:
        return False
    os.unlink(temporary)
    return True


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

"""The one folder in which amcl_fast keeps what it derived; nothing is ever written beside a user's files."""

import errno
import logging
import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from amcl_fast.home import cache_home
from amcl_fast.runs.files import write_file
from amcl_fast.runs.in_place import refuse_links

log = logging.getLogger(__name__)

_DAY = 86_400.0  # seconds
# After which what nobody has asked for since is removed.
_KEPT = 60 * _DAY
# Of what is kept: digests, with an ending or half written. Other files are the user's.
_NAME = re.compile(r"\.?[0-9a-f]{32}")
_UNWRITABLE: set[Path] = set()  # of which it has been told


def cache_folder() -> Path:
    """`$AMCL_FAST_CACHE`, or `amcl_fast.home.cache_home`: ~/.cache/amcl_fast. It need not exist."""
    own = os.environ.get("AMCL_FAST_CACHE")
    return Path(os.path.expanduser(own)) if own else cache_home()


def unkept(what: str, error: OSError) -> None:
    """Say that something cannot be kept, once of each cache folder, and then in the log for those who look for it."""
    folder = cache_folder()
    level = logging.DEBUG if folder in _UNWRITABLE else logging.WARNING
    _UNWRITABLE.add(folder)
    why = error.strerror or error
    remedy = "every run looks again; AMCL_FAST_CACHE names another cache folder"
    log.log(level, "%s cannot be kept in %s (%s): %s", what, folder, why, remedy)


def write_whole(path: Path, content: bytes | Iterable[bytes | memoryview], *, replace: bool = True) -> None:
    """Write a file, folders included, so that no other process ever sees a part of it.

    Args:
        path: of the file; a link there is replaced, not followed.
        content: of the file, in one piece or several.
        replace: what is there already; else that stays, also where another process writes it at the same time.

    Raises:
        OSError: the file cannot be written.
    """
    refuse_links(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, content, replace=replace)


def make_folder(path: Path) -> None:
    """Make a folder of the cache.

    Raises:
        OSError: it cannot be made, or written; the message says what helps.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        why = error.strerror or error
        raise type(error)(f"{path} cannot be written ({why}): AMCL_FAST_CACHE names another cache folder") from error


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
    for folder in (cache_folder() / name for name in ("lists", "scans", "shards")):
        if folder.is_symlink():  # nothing of ours is written there
            continue
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                with suppress(OSError):
                    if _NAME.match(entry.name) and entry.stat(follow_symlinks=False).st_mtime < before:
                        os.unlink(entry.path)

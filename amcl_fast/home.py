"""Where what can be made again is kept: in the user's cache, or elsewhere where no home can be written."""

import functools
import os
import stat
import tempfile
from pathlib import Path


def cache_home() -> Path:
    """The amcl_fast of `$XDG_CACHE_HOME`, which is ~/.cache where it is not set; it need not exist.

    Where it is not there and cannot be made, as in a container under a number without a home, it is a folder of the
    user's among the temporary files.
    """
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # The specification has paths that are not absolute ignored.
    parent = Path(shared) if os.path.isabs(shared) else Path(os.path.expanduser("~/.cache"))
    folder = parent / "amcl_fast"
    return folder if folder.is_dir() or can_be_made(folder) else _temporary()


def can_be_made(folder: Path) -> bool:
    """Whether a folder is there and may be written, or could be."""
    if not folder.is_absolute():
        return False  # a home that nobody knows
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def spare_home() -> None:
    """Have matplotlib and Triton use the cache where they cannot write into the home; before they are imported."""
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    for name, usual in (("MPLCONFIGDIR", f"{config}/matplotlib"), ("TRITON_CACHE_DIR", "~/.triton/cache")):
        if name not in os.environ and not can_be_made(Path(os.path.expanduser(usual))):
            os.environ[name] = str(cache_home() / name.lower())


@functools.cache
def _temporary() -> Path:
    """A folder that nobody else can write: programs are kept there too."""
    path = Path(tempfile.gettempdir()) / f"amcl_fast-{os.getuid()}"
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
            return Path(tempfile.mkdtemp(prefix="amcl_fast-"))
    return path

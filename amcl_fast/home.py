"""Where what can be made again is kept: in the user's cache, or elsewhere where no home can be written."""

import functools
import getpass
import os
import stat
import tempfile
from contextlib import suppress
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
    """Have others use the cache where what they use is not the user's own; before they are imported.

    matplotlib and Triton use the home, if that can be written; torch.compile, which keeps programs, a folder among the
    temporary files, of a name that everybody knows and may have taken.
    """
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    for name, usual in (("MPLCONFIGDIR", f"{config}/matplotlib"), ("TRITON_CACHE_DIR", "~/.triton/cache")):
        if name not in os.environ and not can_be_made(Path(os.path.expanduser(usual))):
            os.environ[name] = str(cache_home() / name.lower())
    with suppress(KeyError, OSError):  # a user without a name, or nothing is there yet
        compiled = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
        if not _is_own(compiled, 0o022):
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_home() / "torchinductor"))


def _is_own(path: Path, mode: int) -> bool:
    """Whether a folder is the user's, and no link, and others have none of the rights of a mode."""
    status = os.lstat(path)
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & mode


@functools.cache
def _temporary() -> Path:
    """A folder that nobody else can write: programs are kept there too."""
    path = Path(tempfile.gettempdir()) / f"amcl_fast-{os.getuid()}"
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not _is_own(path, 0o077):
            return Path(tempfile.mkdtemp(prefix="amcl_fast-"))
    return path

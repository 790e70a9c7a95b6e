"""Temporary folders that go however the benchmark ends: by itself, by Ctrl-C, by SIGKILL."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PREFIX = "amcl-fast-scale-"
_REMOVE = 'cat >/dev/null; rm -rf -- "$1" 2>/dev/null || { sleep 5; rm -rf -- "$1"; }'


@contextmanager
def removed(where: Path) -> Iterator[Path]:
    """A temporary folder in `where`; a process of its own removes it when the pipe to this one is closed."""
    folder = tempfile.mkdtemp(prefix=PREFIX, dir=where)
    # A session of its own: neither a Ctrl-C nor a terminal that is closed reaches it.
    remover: subprocess.Popen[Any] = subprocess.Popen(
        ["sh", "-c", _REMOVE, "sh", folder], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield Path(folder)
    finally:
        assert remover.stdin is not None
        remover.stdin.close()
        remover.wait()

"""Data sets that have a name: folders of the cache, made or fetched on the first use."""

from pathlib import Path

from amcl_fast.data.sources.download import DOWNLOADS, prepare_download

BUILTIN = "builtin"
NAMES = (BUILTIN, *DOWNLOADS)
"""What data.root, data.held_out and data.evaluation may be beside a path."""


def data_path(data: str | Path) -> Path:
    """Where images lie that are given by a name or a path; a path is as it was but for a leading ~.

    Raises:
        ConnectionError: a download failed.
        OSError: the cache cannot be written.
    """
    if data == BUILTIN:
        from amcl_fast.data.sources.builtin import prepare_builtin

        return prepare_builtin()
    return prepare_download(str(data)) if data in DOWNLOADS else Path(data).expanduser()

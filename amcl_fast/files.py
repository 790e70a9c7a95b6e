"""Files that are either the old ones or the new ones, whatever happens while they are written."""

import os
from pathlib import Path


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file beside its place and rename it; text is UTF-8.

    Raises:
        OSError: it cannot be written. What was there before is as it was.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        # Names of files that are not valid UTF-8 come as surrogates.
        partial.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogateescape"))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)

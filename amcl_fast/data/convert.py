"""A folder of images in formats that are not trained on, as one that is: `python -m amcl_fast.data.convert`.

Images of other formats (GIF, TIFF, JPEG 2000, AVIF, PNM, …) are written as PNG, all others are links to what is there.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from amcl_fast.data.reading.reduction import upright
from amcl_fast.data.scan.headers import BadImage, check_header, unsupported
from amcl_fast.data.scan.limits import Limits
from amcl_fast.data.scan.walk import list_files
from amcl_fast.extras import require
from amcl_fast.left_out import FOLDER_UNREADABLE
from amcl_fast.progress import Progress
from amcl_fast.runs.files import NewFile
from amcl_fast.runs.in_place import make_within

# A link costs nothing; what it leads to is judged where it is read.
_NO_LIMITS = Limits(sys.maxsize, sys.maxsize)
_USAGE = "usage: python -m amcl_fast.data.convert SOURCE TARGET"


def convert(source: str | Path, target: str | Path) -> tuple[int, int, list[tuple[str, str]]]:
    """Make a folder of the images of another, each at its place, under its name: converted ones with .png behind it.

    Of several frames or pages the first is taken; 16 bits become 8. What is no image is not taken over. What is there
    in the target stays, so a call that was interrupted is gone on with by the same call.

    Args:
        source: folder of images, in folders of any depth.
        target: folder; it is made.

    Returns:
        How many images were converted, how many are links, and (path, reason) of those that could not be converted,
        folders that cannot be read among them.

    Raises:
        ValueError: `source` is no folder, or one lies in the other.
        OSError: something cannot be read or written.
        ImportError: Pillow is missing.
    """
    require("converting images", "PIL")
    source, target = os.path.realpath(source), os.path.realpath(target)
    if not os.path.isdir(source):
        raise ValueError(f"{source} is not a folder; {_USAGE}")
    if os.path.commonpath([source, target]) in (source, target):
        raise ValueError(f"TARGET must lie beside {source}, neither in it nor above it, got {target}")
    os.makedirs(target, exist_ok=True)
    found, left_out = list_files([source], {"": source})
    files, converted, linked = found[""], 0, 0
    failed = [entry for entry in left_out if entry[1].startswith(FOLDER_UNREADABLE)]
    with Progress("converting images", len(files)) as progress:
        for path in files:
            place = os.path.join(target, os.path.relpath(path, source))
            try:
                check_header(path, _NO_LIMITS)
                _link(path, Path(place), Path(target))
                linked += 1
            except BadImage as problem:
                if unsupported(str(problem)):
                    reason = _write_png(path, Path(f"{place}.png"), Path(target))
                    converted += not reason
                    failed += [(path, reason)] if reason else []
            progress.add(1)
    return converted, linked, failed


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    if len(arguments) != 2 or {"-h", "--help"} & {*arguments}:
        print(_USAGE, file=sys.stderr)
        return 2
    try:
        converted, linked, failed = convert(*map(os.path.expanduser, arguments))
    except (ValueError, OSError, ImportError) as error:
        print(f"amcl_fast.data.convert: error: {error}", file=sys.stderr)
        return 2
    print(f"{converted:,} images converted to PNG, {linked:,} linked, in {arguments[1]}")
    for path, reason in failed[:3]:
        print(f"{path}: {reason}", file=sys.stderr)
    if failed[3:]:
        print(f"{len(failed) - 3:,} more could not be converted", file=sys.stderr)
    return 1 if failed else 0


def _link(path: str, place: Path, target: Path) -> None:
    if not os.path.lexists(place):
        make_within(target, place.parent)
        os.symlink(path, place)


def _write_png(path: str, place: Path, target: Path) -> str:
    """Write an image as PNG; returns why that cannot be, "" if it is there."""
    from PIL import Image

    if os.path.exists(place):
        return ""
    _register_heif()
    try:
        with Image.open(path) as image:
            whole = upright(image)
            if whole.mode in ("I", "F"):
                raise ValueError("32 bits a pixel, whose range is not known")
            if whole.mode.startswith("I;16"):
                whole = whole.convert("I").point(lambda value: value / 256).convert("L")
            elif whole.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
                whole = whole.convert("RGB")
            whole.load()
            make_within(target, place.parent)
            with NewFile(place) as file:
                whole.save(file, format="PNG")
    except (Image.DecompressionBombError, SyntaxError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.filename not in (None, path):
            raise
        hint = "; pip install pillow-heif reads HEIC" if path.lower().endswith((".heic", ".heif")) else ""
        return f"Pillow cannot read it: {error}{hint}"
    return ""


def _register_heif() -> None:
    with suppress(ImportError):
        import_module("pillow_heif").register_heif_opener()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

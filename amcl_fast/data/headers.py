"""A look at an image file's first and last bytes: cheap enough to do to every file before training."""

import os
import stat
from typing import BinaryIO

MAX_PIXELS = 100_000_000
"""Larger images are left out: decoded, one takes more than 300 MB."""

SUPPORTED = "JPEG, PNG, WebP and BMP"

_OTHER_FORMATS = {
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\0\0\0\x0cjP": "JPEG 2000",
    b"%PDF": "PDF",
    b"8BPS": "Photoshop",
}
# Start of frame: baseline, extended, progressive. Every decoder knows these.
_COMMON_FRAMES = {0xC0, 0xC1, 0xC2}
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class BadImage(ValueError):
    """The file cannot be an image that can be trained on; the message says why."""


def check_header(path: str) -> bool:
    """Judge a file by its size, its first bytes (never its name) and its last ones.

    Returns:
        True if all is well as far as can be seen, False if only decoding can tell.

    Raises:
        BadImage: the file is missing, empty, truncated, too large or of another kind.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise BadImage("not a regular file")
        if status.st_size == 0:
            raise BadImage("empty file")
        with open(path, "rb") as file:
            head = file.read(32)
            if head.startswith(b"\xff\xd8\xff"):
                return _check_jpeg(file, status.st_size)
            if head.startswith(b"\x89PNG\r\n\x1a\n"):
                return _check_png(file, head, status.st_size)
            if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
                return _check_webp(head, status.st_size)
            if head.startswith(b"BM") and head[6:10] == bytes(4):
                return _check_bmp(head, status.st_size)
    except FileNotFoundError:
        raise BadImage("dangling link" if os.path.islink(path) else "no such file") from None
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror or error}") from None
    for magic, name in _OTHER_FORMATS.items():
        if head.startswith(magic):
            raise BadImage(f"{name} is not supported; {SUPPORTED} are")
    raise BadImage(f"not an image ({SUPPORTED} are supported): it starts with {head[:8]!r}")


def _check_pixels(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise BadImage(f"impossible size: {width} x {height}")
    if width * height > MAX_PIXELS:
        raise BadImage(f"too large: {width} x {height} pixels; at most {MAX_PIXELS:,} are accepted")


def _check_jpeg(file: BinaryIO, size: int) -> bool:
    common = _check_jpeg_frame(file, size)
    file.seek(max(size - 2, 0))
    # Some writers put data after the end marker, so a missing one is no proof of truncation.
    return common and file.read(2) == b"\xff\xd9"


def _check_jpeg_frame(file: BinaryIO, size: int) -> bool:
    """Walk the segments to the frame header; True if it is of a common kind."""
    position = 2
    while position < size:
        file.seek(position)
        segment = file.read(9)
        if len(segment) < 9 or segment[0] != 0xFF:
            break
        marker, length = segment[1], int.from_bytes(segment[2:4], "big")
        if marker == 0xFF:
            position += 1
        elif marker in _FRAMES:
            _check_pixels(int.from_bytes(segment[7:9], "big"), int.from_bytes(segment[5:7], "big"))
            return marker in _COMMON_FRAMES and segment[4] == 8
        elif marker == 0xDA or length < 2:
            break
        else:
            position += 2 + length
    raise BadImage("truncated or corrupt JPEG: no frame header")


def _check_png(file: BinaryIO, head: bytes, size: int) -> bool:
    if len(head) < 26 or head[12:16] != b"IHDR":
        raise BadImage("truncated or corrupt PNG: no header")
    _check_pixels(int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big"))
    file.seek(max(size - 12, 0))
    return file.read(12)[4:8] == b"IEND"


def _check_webp(head: bytes, size: int) -> bool:
    if size < 8 + int.from_bytes(head[4:8], "little") or len(head) < 30:
        raise BadImage("truncated WebP")
    if head[12:16] == b"VP8X":
        _check_pixels(1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little"))
    elif head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        _check_pixels(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    elif head[12:16] == b"VP8 ":
        _check_pixels(int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF)
    else:
        return False
    return True


def _check_bmp(head: bytes, size: int) -> bool:
    if size < int.from_bytes(head[2:6], "little") or len(head) < 26:
        raise BadImage("truncated BMP")
    if int.from_bytes(head[14:18], "little") < 40:
        return False
    _check_pixels(
        abs(int.from_bytes(head[18:22], "little", signed=True)),
        abs(int.from_bytes(head[22:26], "little", signed=True)),
    )
    return True

"""A look at an image file's headers and its end: cheap enough for every file, and needed before DALI may see one.

DALI's decoder ends the process where it cannot parse the header of an image (docs/data.md). What is said here to be
parseable follows nvImageCodec's parsers, which DALI uses: every marker of a JPEG up to its scan, every chunk of a PNG.
"""

import os
import stat
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

MAX_PIXELS = 100_000_000
"""Larger images are left out: decoded, one takes more than 300 MB."""

MAX_BYTES = 8 * MAX_PIXELS + 2**20
"""Larger files are left out: they hold more than 16 bit RGBA without compression."""

SUPPORTED = "JPEG, PNG, WebP and BMP"

IMAGE_NAMES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib"),
    *(".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".jp2"),
)
"""How what is meant to be an image is named, in lower case; whether it is one, its content tells."""

Read = Callable[[int, int], bytes]
"""`read(at, count)`: bytes of an encoded image; fewer, or none, beyond its end."""

_OTHER_FORMATS = {
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\0\0\0\x0cjP": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"II\xbc\x01": "JPEG XR",
    b"\0\0\1\0": "ICO",
    b"\0\0\2\0": "CUR",
    b"%PDF": "PDF",
    b"8BPS": "Photoshop",
    b"v/1\1": "OpenEXR",
    b"\x93NUMPY": "NumPy's format",
    b"PK\3\4": "ZIP",
    b"\x1f\x8b": "gzip",
    b"version https://git-lfs": "Git LFS's pointer to a file",
}
# What `amcl_fast.data.convert` takes, HEIC with a package of its own.
_CONVERTIBLE = {"GIF", "TIFF", "JPEG 2000", "AVIF", "HEIC", "HEIF", "ICO", "PNM", "Photoshop"}
# Of ISO base media files: what the first of their brands that is known stands for.
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "HEIC"),
    b"crx ": "CR3",
}
_CONTAINERS = {b"mif1", b"mif2", b"msf1", b"miaf"}
# Markup, by how it begins but for white space and capitals.
_MARKUP = {b"<!doctype html": "HTML (a failed download?)", b"<html": "HTML (a failed download?)", b"<svg": "SVG"}
_PROLOGUE = 1024  # bytes of markup in which its kind is looked for
_START_OF_SCAN = 0xDA
_SEGMENT = 22  # bytes of a segment that are looked at: a frame header of four components
UNREADABLE = "cannot be read"
"""How the reason begins of a file that the system does not give out; it may tomorrow."""
NO_IMAGE = "not an image"
"""How the reason begins of a file that is of no kind known here."""
_WINDOW = 1024  # bytes that are read at once
_MOST_MARKERS = 200_000  # of a JPEG's before its scan, and a PNG's chunks; erased flash reads as a padding without end
# Baseline, extended, progressive. Every decoder knows these.
_COMMON_FRAMES = {0xC0, 0xC1, 0xC2}
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Markers that no length follows; none belongs before the scan.
_BARE = {0x01, *range(0xD0, 0xDA)}
_SAMPLING = bytes(horizontal << 4 | vertical for horizontal in range(1, 5) for vertical in range(1, 5))
# Bit depths by colour type.
_PNG_DEPTHS = {0: {1, 2, 4, 8, 16}, 2: {8, 16}, 3: {1, 2, 4, 8}, 4: {8, 16}, 6: {8, 16}}
_WEBP_EXIF = 0x08

_UNSUPPORTED = f" is not supported; {SUPPORTED} are"


class BadImage(ValueError):
    """The file cannot be an image that can be trained on; the message says why."""


NONE_MEASURED = "no file of those to be measured can be read and decoded any more"


class NoImageLeftError(OSError, RuntimeError):
    """All files of a run have turned out to be bad; in one line, as errors of files are told."""


class Look(Enum):
    """What headers and end tell of an image that is not bad for certain."""

    WHOLE = "common, and it ends where it should"
    PARSED = "common, but whether all of it is there only decoding tells"
    UNKNOWN = "unusual: only decoding tells, and a decoder that may crash"


class Sight(NamedTuple):
    """What a look at an image has found: how it looks, and its size in pixels, 0 where that is not known."""

    looks: Look
    width: int = 0
    height: int = 0


def check_header(path: str) -> bool:
    """Judge a file by its size, its headers (never its name) and its end. What is no regular file is not opened.

    Returns:
        True if all is well as far as can be seen, False if only decoding can tell.

    Raises:
        BadImage: the file is missing, empty, truncated, too large or of another kind.
    """
    try:
        descriptor, size = open_image(path)
        try:
            return look(lambda at, count: os.pread(descriptor, count, at), size).looks is Look.WHOLE
        finally:
            os.close(descriptor)
    except OSError as error:
        raise unreadable(path, error) from None


def open_image(path: str | bytes) -> tuple[int, int]:
    """Open a regular file of acceptable size for reading; returns its descriptor and its size in bytes.

    Raises:
        BadImage: it is no regular file, empty, or too large.
        OSError: it cannot be opened.
    """
    _check_status(os.stat(path))
    # If something else has taken its place since, opening that must not wait for it (a FIFO) or be steered by it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        return descriptor, _check_status(os.fstat(descriptor))
    except BadImage:
        os.close(descriptor)
        raise


def _check_status(status: os.stat_result) -> int:
    if not stat.S_ISREG(status.st_mode):
        raise BadImage("not a regular file")
    return check_size(status.st_size)


def check_size(size: int) -> int:
    """The number of bytes itself.

    Raises:
        BadImage: an image cannot have so many.
    """
    if not size:
        raise BadImage("empty file")
    if size > MAX_BYTES:
        raise BadImage(f"too large: {size:,} bytes; at most {MAX_BYTES:,} are accepted")
    return size


def unsupported(reason: str) -> str:
    """The name of the image format of a file that is left out for it, "" of others and of what is no image."""
    name = reason.removesuffix(_UNSUPPORTED)
    return name if name != reason and name in _CONVERTIBLE else ""


def unreadable(path: str | bytes, error: OSError) -> BadImage:
    """Why the file at `path` could not be opened or read."""
    if isinstance(error, FileNotFoundError):
        return BadImage("dangling link" if os.path.islink(path) else "no such file")
    return BadImage(f"{UNREADABLE}: {error.strerror or error}")


def look(read: Read, size: int) -> Sight:
    """Judge an encoded image of `size` bytes.

    Whatever is not UNKNOWN, DALI can parse; its pixels may still be damaged.

    Raises:
        BadImage: it is empty, truncated, too large or of another kind.
    """
    head = read(0, 50)
    if not head:
        raise BadImage("empty file")
    if head.startswith(b"\xff\xd8\xff"):
        return _look_at_jpeg(read, size)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return _look_at_png(read, head, size)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _look_at_webp(read, head, size)
    if head.startswith(b"BM") and head[6:10] == bytes(4):
        return _look_at_bmp(head, size)
    if name := _other_format(read, head):
        raise BadImage(f"{name}{_UNSUPPORTED}")
    raise BadImage(f"{NO_IMAGE} ({SUPPORTED} are supported): it starts with {head[:8]!r}")


def _other_format(read: Read, head: bytes) -> str | None:
    """Name of a format that is not supported, None if it is not known."""
    for magic, name in _OTHER_FORMATS.items():
        if head.startswith(magic):
            return name
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return "PNM"
    if head[4:8] == b"ftyp":
        return _media_format(head)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"<"):
        text = read(0, _PROLOGUE).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
        for beginning, name in _MARKUP.items():
            if text.startswith(beginning) or (
                text.startswith((b"<?xml", b"<!--", b"<!doctype svg")) and beginning in text
            ):
                return name
        return "XML" if text.startswith(b"<?xml") else None
    return None


def _media_format(head: bytes) -> str:
    """Name of what an ISO base media file holds, by its brands: the major one, then the compatible ones."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))]
    known = next((_BRANDS[brand] for brand in brands if brand in _BRANDS), None)
    return known or ("HEIF" if _CONTAINERS & set(brands) else "video (MP4, QuickTime and the like)")


def _check_pixels(width: int, height: int) -> tuple[int, int]:
    if width < 1 or height < 1:
        raise BadImage(f"impossible size: {width} x {height}")
    if width * height > MAX_PIXELS:
        raise BadImage(f"too large: {width} x {height} pixels; at most {MAX_PIXELS:,} are accepted")
    return width, height


def _look_at_jpeg(read: Read, size: int) -> Sight:
    position, frames, common = 2, 0, True
    window, start = b"", 0
    width = height = 0
    for _ in range(_MOST_MARKERS):
        at = position - start
        if at + _SEGMENT > len(window):
            window, start, at = read(position, _WINDOW), position, 0
        if len(window) < at + 4 or window[at] != 0xFF or not window[at + 1]:
            break
        marker, length = window[at + 1], window[at + 2] << 8 | window[at + 3]
        if marker == 0xFF:
            position += 1
            continue
        if marker == _START_OF_SCAN and frames:
            if frames > 1 or not common:
                return Sight(Look.UNKNOWN, width, height)
            # Some writers put data after the end marker, so a missing one is no proof of truncation.
            whole = read(size - 2, 2) == b"\xff\xd9"
            return Sight(Look.WHOLE if whole else Look.PARSED, width, height)
        if marker in _BARE or marker == _START_OF_SCAN or length < 2 or position + 2 + length > size:
            break
        if marker in _FRAMES:
            segment = window[at : at + _SEGMENT]
            if len(segment) < 10:
                break
            width, height = _check_pixels(segment[7] << 8 | segment[8], segment[5] << 8 | segment[6])
            frames += 1
            common &= marker in _COMMON_FRAMES and _is_common_frame(segment, length)
        elif marker == 0xE1 or marker == 0xEE:  # Exif, Adobe
            common &= length >= 8
        position += 2 + length
    raise BadImage(f"truncated or corrupt JPEG: no {'pixels' if frames else 'frame header'}")


def _is_common_frame(segment: bytes, length: int) -> bool:
    """8 bits, one, three or four components, sampling factors that exist."""
    components = segment[9]
    return (
        segment[4] == 8
        and components in (1, 3, 4)
        and length == 8 + 3 * components
        and not segment[11 : 10 + 3 * components : 3].translate(None, _SAMPLING)
    )


def _look_at_png(read: Read, head: bytes, size: int) -> Sight:
    if len(head) < 33 or head[8:16] != b"\0\0\0\x0dIHDR":
        raise BadImage("truncated or corrupt PNG: no header")
    extent = _check_pixels(int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big"))
    common = head[24] in _PNG_DEPTHS.get(head[25], ())
    position = 33
    for _ in range(_MOST_MARKERS):
        chunk = read(position, 8)
        if len(chunk) < 8:
            break
        position += 12 + int.from_bytes(chunk[:4], "big")
        if chunk[4:] == b"IEND":
            whole = Look.WHOLE if position == size else Look.PARSED
            return Sight(whole if common else Look.UNKNOWN, *extent)
    raise BadImage("truncated or corrupt PNG: no end")


def _look_at_webp(read: Read, head: bytes, size: int) -> Sight:
    if size < 8 + int.from_bytes(head[4:8], "little") or len(head) < 30:
        raise BadImage("truncated WebP")
    if head[12:16] == b"VP8X":
        pixels = _check_pixels(1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little"))
        common = not head[20] & _WEBP_EXIF or _exif_is_found(read, size)
    elif head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        pixels = _check_pixels(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
        common = head[20] == 0x2F
    elif head[12:16] == b"VP8 ":
        width, height = (int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (26, 28))
        pixels = _check_pixels(width, height)
        common = head[23:26] == b"\x9d\x01\x2a"
    else:
        return Sight(Look.UNKNOWN)
    return Sight(Look.WHOLE if common else Look.UNKNOWN, *pixels)


def _exif_is_found(read: Read, size: int) -> bool:
    """Whether the chunks of an extended WebP lead to its Exif without padding, for which parsers differ."""
    position = 12
    while len(chunk := read(position, 8)) == 8:
        length = int.from_bytes(chunk[4:], "little")
        position += 8 + length
        if chunk[:4] == b"EXIF":
            return position <= size
        if length % 2:
            break
    return False


def _look_at_bmp(head: bytes, size: int) -> Sight:
    if size < int.from_bytes(head[2:6], "little") or len(head) < 50:
        raise BadImage("truncated BMP")
    pixels, header = int.from_bytes(head[10:14], "little"), int.from_bytes(head[14:18], "little")
    if header < 40:
        return Sight(Look.UNKNOWN)
    width, height = (int.from_bytes(head[at : at + 4], "little", signed=True) for at in (18, 22))
    unknown = Sight(Look.UNKNOWN, *_check_pixels(abs(width), abs(height)))
    depth, compression = int.from_bytes(head[28:30], "little"), int.from_bytes(head[30:34], "little")
    colours = int.from_bytes(head[46:50], "little") or 1 << depth
    palette = 4 * colours if depth <= 8 else 0
    if depth not in (1, 4, 8, 24, 32) or palette > 4 << depth or compression or width < 0:
        return unknown
    if pixels < 14 + header + palette:
        return unknown
    if size < pixels + (width * depth + 31) // 32 * 4 * abs(height):
        raise BadImage("truncated BMP")
    return Sight(Look.WHOLE, width, abs(height))

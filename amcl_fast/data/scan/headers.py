"""A look at an image file's headers and its end: cheap enough for every file, and needed before DALI may see one.

DALI's decoder ends the process where it cannot parse the header of an image (docs/damage.md). What is said here to be
parseable follows nvImageCodec's parsers, which DALI uses: every marker of a JPEG up to its scan, every chunk of a PNG.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator
from enum import Enum
from typing import NamedTuple

from amcl_fast.data.scan.formats import CONVERTIBLE, other_format
from amcl_fast.data.scan.limits import DEFAULT_LIMITS, Limits

SUPPORTED = "JPEG, PNG, WebP and BMP"

IMAGE_NAMES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib"),
    *(".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".jp2"),
)
"""How what is meant to be an image is named, in lower case; whether it is one, its content tells."""

Read = Callable[[int, int], bytes]
"""`read(at, count)`: bytes of an encoded image; fewer, or none, beyond its end."""

_START_OF_SCAN = 0xDA
_END = 0xD9
# Within a scan an FF is followed by a zero or the number of a restart.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_SHORTEST_SCAN = 10  # bytes: a marker and a header, without data
_MANY_PIXELS = 10  # share of the most pixels, from which a scan of files reads a whole JPEG to count its scans
_PIECE = 1 << 20  # bytes that are read at once for that
_SEGMENT = 22  # bytes of a segment that are looked at: a frame header of four components
UNREADABLE = "cannot be read"
"""How the reason begins of a file that the system does not give out; it may tomorrow."""
NO_IMAGE = "not an image"
"""How the reason begins of a file that is of no kind known here."""
_WINDOW = 1024  # bytes that are read at once
_MOST_MARKERS = 200_000  # of a JPEG before its scan, and chunks of others; erased flash reads as a padding without end
# Baseline, extended, progressive. Every decoder knows these.
_COMMON_FRAMES = {0xC0, 0xC1, 0xC2}
# All coefficients of a scan are there before the next one.
_SEQUENTIAL = {0xC0, 0xC1, 0xC3, 0xC9, 0xCB}
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Markers that no length follows; none belongs before the scan.
_BARE = {0x01, *range(0xD0, 0xDA)}
_SAMPLING = bytes(horizontal << 4 | vertical for horizontal in range(1, 5) for vertical in range(1, 5))
# Bit depths by colour type.
_PNG_DEPTHS = {0: {1, 2, 4, 8, 16}, 2: {8, 16}, 3: {1, 2, 4, 8}, 4: {8, 16}, 6: {8, 16}}
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_ROOM = 1 << 16  # bytes, for pieces of few pixels each, and what an interlaced one of few pixels has more
_WEBP_EXIF = 0x08
_OLD_BMP = 12  # bytes of the header whose numbers have 16 bits

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
    """What a look at an image has found: how it looks, and its size in pixels, 0 where that is not known.

    Attributes:
        looks: as far as headers and end tell.
        width: in pixels.
        height: in pixels.
        streams: whether it is decoded row by row: at a smaller scale it is never whole in memory.
    """

    looks: Look
    width: int = 0
    height: int = 0
    streams: bool = False


def check_header(path: str, limits: Limits = DEFAULT_LIMITS) -> bool:
    """Judge a file by its size, its headers (never its name) and its end. What is no regular file is not opened.

    Returns:
        True if all is well as far as can be seen, False if only decoding can tell.

    Raises:
        BadImage: the file is missing, empty, truncated, too large or of another kind.
    """
    return look_at(path, limits).looks is Look.WHOLE


def look_at(path: str, limits: Limits = DEFAULT_LIMITS) -> Sight:
    """What `check_header` judges by."""
    try:
        descriptor, size = open_image(path, limits)
        try:
            return look(lambda at, count: os.pread(descriptor, count, at), size, limits)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise unreadable(path, error) from None


def open_image(path: str | bytes, limits: Limits = DEFAULT_LIMITS) -> tuple[int, int]:
    """Open a regular file of acceptable size for reading; returns its descriptor and its size in bytes.

    Raises:
        BadImage: it is no regular file, empty, or too large.
        OSError: it cannot be opened.
    """
    _check_status(os.stat(path), limits)
    # If something else has taken its place since, opening that must not wait for it (a FIFO) or be steered by it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        return descriptor, _check_status(os.fstat(descriptor), limits)
    except BadImage:
        os.close(descriptor)
        raise


def _check_status(status: os.stat_result, limits: Limits) -> int:
    if not stat.S_ISREG(status.st_mode):
        raise BadImage("not a regular file")
    return check_size(status.st_size, limits)


def check_size(size: int, limits: Limits = DEFAULT_LIMITS) -> int:
    """The number of bytes itself.

    Raises:
        BadImage: there are none, or too many.
    """
    if reason := "empty file" if not size else limits.refuse_bytes(size):
        raise BadImage(reason)
    return size


def unsupported(reason: str) -> str:
    """The name of the image format of a file that is left out for it, "" of others and of what is no image."""
    name = reason.removesuffix(_UNSUPPORTED)
    return name if name != reason and name in CONVERTIBLE else ""


def unreadable(path: str | bytes, error: OSError) -> BadImage:
    """Why the file at `path` could not be opened or read."""
    if isinstance(error, FileNotFoundError):
        return BadImage("dangling link" if os.path.islink(path) else "no such file")
    return BadImage(f"{UNREADABLE}: {error.strerror or error}")


def look(read: Read, size: int, limits: Limits = DEFAULT_LIMITS, *, at_hand: bool = False) -> Sight:
    """Judge an encoded image of `size` bytes.

    Whatever is not UNKNOWN, DALI can parse; its pixels may still be damaged.

    Args:
        read: of its bytes.
        size: how many there are.
        limits: what is too large, or may take too long.
        at_hand: reading all of it costs little; else that is done for JPEGs of many pixels and scans alone.

    Raises:
        BadImage: it is empty, truncated, too large or of another kind.
    """
    head = read(0, 50)
    if not head:
        raise BadImage("empty file")
    if head.startswith(b"\xff\xd8\xff"):
        return _look_at_jpeg(read, size, limits, at_hand)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return _look_at_png(read, head, size, limits)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _look_at_webp(read, head, size, limits)
    if head.startswith(b"BM") and head[6:10] == bytes(4):
        return _look_at_bmp(head, size, limits)
    if name := other_format(read, head):
        raise BadImage(f"{name}{_UNSUPPORTED}")
    raise BadImage(f"{NO_IMAGE} ({SUPPORTED} are supported): it starts with {head[:8]!r}")


def _check_pixels(width: int, height: int, limits: Limits) -> tuple[int, int]:
    if width < 1 or height < 1:
        raise BadImage(f"impossible size: {width} x {height}")
    if reason := limits.refuse_pixels(width, height):
        raise BadImage(reason)
    return width, height


def _look_at_jpeg(read: Read, size: int, limits: Limits, at_hand: bool) -> Sight:
    position, frames, common, sequential, components = 2, 0, True, True, 0
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
            streams = sequential and window[at + 4 : at + 5] == bytes([components])
            pixels = width * height
            if not streams and (at_hand or pixels > limits.pixels // _MANY_PIXELS):
                _check_scans(read, position, size, pixels, limits)
            if frames > 1 or not common:
                return Sight(Look.UNKNOWN, width, height)
            # Some writers put data after the end marker, so a missing one is no proof of truncation.
            whole = read(size - 2, 2) == b"\xff\xd9"
            return Sight(Look.WHOLE if whole else Look.PARSED, width, height, streams)
        if marker in _BARE or marker == _START_OF_SCAN or length < 2 or position + 2 + length > size:
            break
        if marker in _FRAMES:
            segment = window[at : at + _SEGMENT]
            if len(segment) < 10:
                break
            width, height = _check_pixels(segment[7] << 8 | segment[8], segment[5] << 8 | segment[6], limits)
            frames += 1
            sequential, components = marker in _SEQUENTIAL, segment[9]
            common &= marker in _COMMON_FRAMES and _is_common_frame(segment, length)
        elif marker == 0xE1 or marker == 0xEE:  # Exif, Adobe
            common &= length >= 8
        position += 2 + length
    raise BadImage(f"truncated or corrupt JPEG: no {'pixels' if frames else 'frame header'}")


def _check_scans(read: Read, at: int, size: int, pixels: int, limits: Limits) -> None:
    """Count the scans of a JPEG up to its end, the first of which begins at `at`, if there is room for too many."""
    if not limits.may_take_long(pixels, (size - at) // _SHORTEST_SCAN):
        return
    scans, markers = 0, 0
    for marker in _markers(read, at):
        scans, markers = scans + (marker == _START_OF_SCAN), markers + 1
        if marker == _END:  # what follows is another program's, such as the video of a photograph that moves
            break
        if markers > _MOST_MARKERS:
            raise BadImage("truncated or corrupt JPEG: no end")
    if limits.may_take_long(pixels, scans):
        raise BadImage(limits.refuse_scans(pixels, scans))


def _markers(read: Read, at: int) -> Iterator[int]:
    """The markers of a JPEG from `at` on, those within scans and what no marker begins left out."""
    window, start = b"", at
    while True:
        found = _MARKER.search(window, at - start)
        if found is None or found.end() + 2 > len(window):
            # Beyond the window, or at its end: of a marker there its length is wanted too.
            at = max(at, start + (found.start() if found else len(window) - 1))
            more = read(at, _PIECE)
            if len(more) < 4:
                return
            window, start = more, at
            continue
        marker, length = window[found.start() + 1], window[found.end() : found.end() + 2]
        yield marker
        at = start + found.end() + (0 if marker in _BARE else int.from_bytes(length, "big"))


def _is_common_frame(segment: bytes, length: int) -> bool:
    """8 bits, one, three or four components, sampling factors that exist."""
    components = segment[9]
    return (
        segment[4] == 8
        and components in (1, 3, 4)
        and length == 8 + 3 * components
        and not segment[11 : 10 + 3 * components : 3].translate(None, _SAMPLING)
    )


def _look_at_png(read: Read, head: bytes, size: int, limits: Limits) -> Sight:
    if len(head) < 33 or head[8:16] != b"\0\0\0\x0dIHDR":
        raise BadImage("truncated or corrupt PNG: no header")
    width, height = _check_pixels(int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big"), limits)
    common = head[24] in _PNG_DEPTHS.get(head[25], ())
    # Of pixels that cannot be packed at all. What is beyond them a decoder unpacks all the same, to a thousand times.
    left = (1 + width * head[24] * _PNG_CHANNELS.get(head[25], 4) // 8) * height * 9 // 8 + _PNG_ROOM
    position = 33
    for _ in range(_MOST_MARKERS):
        chunk = read(position, 8)
        if len(chunk) < 8:
            break
        length = int.from_bytes(chunk[:4], "big")
        position += 12 + length
        if chunk[4:] == b"IDAT" and (left := left - length) < 0:
            raise BadImage(f"corrupt PNG: more data than {width} x {height} pixels have")
        if chunk[4:] == b"IEND":
            whole = Look.WHOLE if position == size else Look.PARSED
            return Sight(whole if common else Look.UNKNOWN, width, height)
    raise BadImage("truncated or corrupt PNG: no end")


def _look_at_webp(read: Read, head: bytes, size: int, limits: Limits) -> Sight:
    if size < 8 + int.from_bytes(head[4:8], "little") or len(head) < 30:
        raise BadImage("truncated WebP")
    if head[12:16] == b"VP8X":
        width, height = (1 + int.from_bytes(head[at : at + 3], "little") for at in (24, 27))
        common = not head[20] & _WEBP_EXIF or _exif_is_found(read, size)
    elif head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        common = head[20] == 0x2F
    elif head[12:16] == b"VP8 ":
        width, height = (int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (26, 28))
        common = head[23:26] == b"\x9d\x01\x2a"
    else:
        return Sight(Look.UNKNOWN)
    return Sight(Look.WHOLE if common else Look.UNKNOWN, *_check_pixels(width, height, limits))


def _exif_is_found(read: Read, size: int) -> bool:
    """Whether the chunks of an extended WebP lead to its Exif without padding, for which parsers differ."""
    position = 12
    for _ in range(_MOST_MARKERS):
        if len(chunk := read(position, 8)) < 8:
            break
        length = int.from_bytes(chunk[4:], "little")
        position += 8 + length
        if chunk[:4] == b"EXIF":
            return position <= size
        if length % 2:
            break
    return False


def _look_at_bmp(head: bytes, size: int, limits: Limits) -> Sight:
    if size < int.from_bytes(head[2:6], "little") or len(head) < 50:
        raise BadImage("truncated BMP")
    pixels, header = int.from_bytes(head[10:14], "little"), int.from_bytes(head[14:18], "little")
    step = 2 if header == _OLD_BMP else 4
    width, height = (int.from_bytes(head[at : at + step], "little", signed=step == 4) for at in (18, 18 + step))
    unknown = Sight(Look.UNKNOWN, *_check_pixels(abs(width), abs(height), limits))
    if header < 40:
        return unknown
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

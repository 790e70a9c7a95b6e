"""Images that are small as files and large, or long in decoding, for whoever opens them."""

import struct
import zlib

from tests.helpers.damaged_files import JPEG, PNG, chunk


def flat_png(width: int, height: int, extra: bytes = b"") -> bytes:
    """A black PNG of one bit a pixel; `extra`: chunks before its data."""
    packer, data = zlib.compressobj(9), b""
    left = height * (1 + -(-width // 8))
    while left > 0:
        data += packer.compress(bytes(min(left, 1 << 20)))
        left -= 1 << 20
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return PNG[:8] + header + extra + chunk(b"IDAT", data + packer.flush()) + chunk(b"IEND", b"")


def progressive_jpeg(width: int, height: int, scans: int) -> bytes:
    """A grey JPEG by hand, whose scans have a few bytes for each 16,384 blocks of 64 pixels."""
    quanta = b"\xff\xdb\0\x43\0" + bytes([1] * 64)
    frame = b"\xff\xc2" + struct.pack(">HBHHBBBB", 11, 8, height, width, 1, 1, 0x11, 0)
    # Each table has one code of one bit: a DC coefficient of zero, and the end of 16,384 + n blocks.
    tables = b"".join(b"\xff\xc4\0\x14" + bytes([kind, 1, *[0] * 15, symbol]) for kind, symbol in ((0, 0), (16, 0xE0)))
    blocks = -(-width // 8) * -(-height // 8)
    first = b"\xff\xda\0\x08\1\1\0\0\0\0" + bytes(-(-blocks // 8))
    others = b"\xff\xda\0\x08\1\1\0\1\x3f\0" + bytes(-(-15 * -(-blocks // 16384) // 8))
    return b"\xff\xd8" + quanta + frame + tables + first + (scans - 1) * others + b"\xff\xd9"


def run_length_bmp(width: int, height: int) -> bytes:
    """A BMP of run lengths, four bytes a row: a pixel, and the end of the row."""
    data = b"\1\7\0\0" * height + b"\0\1"
    pixels = 54 + 4 * 256
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", pixels + len(data), 0, 0, pixels) + header + bytes(4 * 256) + data


def old_bmp(width: int, height: int) -> bytes:
    """A BMP with the first header there was, whose pixels are not there."""
    return b"BM" + struct.pack("<IHHI", 126, 0, 0, 26) + struct.pack("<IHHHH", 12, width, height, 1, 24) + bytes(100)


def sparse_jpeg(path: str, size: int) -> None:
    """A JPEG's first half at the begin of a file of `size` bytes, which takes no room on the disk."""
    with open(path, "wb") as file:
        file.write(JPEG[: len(JPEG) // 2])
        file.truncate(size)

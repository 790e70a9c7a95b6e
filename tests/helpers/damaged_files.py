"""Everything that can become of an image file."""

import io
import itertools
import os
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

_noise = np.random.default_rng(0)


def _encoded(kind: str, size: int = 40, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(_noise.integers(0, 256, (size, size + 8, 3), np.uint8)).save(buffer, kind, **options)
    return buffer.getvalue()


JPEG, PNG, WEBP, BMP = (_encoded(kind) for kind in ("JPEG", "PNG", "WEBP", "BMP"))
_FRAME, _SCAN, _HUFFMAN, _QUANTA = (JPEG.index(bytes([0xFF, marker])) for marker in (0xC0, 0xDA, 0xC4, 0xDB))
_DATA = PNG.index(b"IDAT")


def _patched(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, depth: int = 8, colour: int = 2, data: bytes = b"", extra: bytes = b"") -> bytes:
    """A PNG by hand, of what PIL does not write; `extra`: chunks between its header and its data."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return PNG[:8] + header + extra + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def _exif(content: bytes) -> bytes:
    return JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 8) + b"Exif\0\0" + content + JPEG[2:]


def contents() -> dict[str, bytes]:
    """Kinds of damage that are other bytes."""
    noise = _noise.bytes
    kinds = {f"JPEG cut to {size}": JPEG[:size] for size in (0, 1, 2, 3, 4, 20, 200, 400, len(JPEG) // 2)}
    kinds |= {f"PNG cut to {size}": PNG[:size] for size in (4, 8, 20, 33, 60, len(PNG) // 2, len(PNG) - 12)}
    kinds |= {f"WebP cut to {size}": WEBP[:size] for size in (12, 20, 40, len(WEBP) // 2)}
    kinds |= {f"BMP cut to {size}": BMP[:size] for size in (2, 20, 54, len(BMP) // 2)}
    kinds |= {f"really {kind}": _encoded(kind) for kind in ("GIF", "TIFF", "JPEG2000", "PPM", "ICO", "TGA", "PDF")}
    kinds |= {f"{kind} cut": _encoded(kind)[:60] for kind in ("GIF", "TIFF", "JPEG2000", "PPM")}
    kinds |= {
        "text": b"not found",
        "HTML": b"<!DOCTYPE html><html><body>404</body></html>" * 20,
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "ZIP": b"PK\3\4" + noise(300),
        "Photoshop": b"8BPS" + noise(300),
        "film": b"\0\0\0\x20ftypisom" + noise(400),
        "PPM that lies": b"P6 65535 65535 255\n" + bytes(100),
        "zeros": bytes(5000),
        "ones": b"\xff" * 5000,
        "random bytes": noise(5000),
        "JPEG: no end": JPEG[:-2],
        "JPEG: header over garbage": JPEG[:_SCAN] + noise(3000),
        "JPEG: scan of garbage": JPEG[: _SCAN + 14] + noise(len(JPEG) - _SCAN - 16) + b"\xff\xd9",
        "JPEG: three bytes over garbage": JPEG[:3] + noise(3000),
        "JPEG: four bytes over zeros": JPEG[:4] + bytes(3000),
        "JPEG: 0 x 0": _patched(JPEG, _FRAME + 5, bytes(4)),
        "JPEG: 65535 x 65535": _patched(JPEG, _FRAME + 5, b"\xff" * 4),
        "JPEG: 3000 x 3000": _patched(JPEG, _FRAME + 5, struct.pack(">HH", 3000, 3000)),
        "JPEG: 12 bits": _patched(JPEG, _FRAME + 4, b"\x0c"),
        "JPEG: lossless": _patched(JPEG, _FRAME + 1, b"\xc3"),
        "JPEG: arithmetic": _patched(JPEG, _FRAME + 1, b"\xc9"),
        "JPEG: hierarchical": _patched(JPEG, _FRAME + 1, b"\xc5"),
        "JPEG: no component": _patched(JPEG, _FRAME + 9, b"\0"),
        "JPEG: two components": _patched(JPEG, _FRAME + 9, b"\2"),
        "JPEG: 255 components": _patched(JPEG, _FRAME + 9, b"\xff"),
        "JPEG: sampled by 0": _patched(JPEG, _FRAME + 11, b"\0"),
        "JPEG: no Huffman tables": JPEG[:_HUFFMAN] + JPEG[_SCAN:],
        "JPEG: bad Huffman table": _patched(JPEG, _HUFFMAN + 5, b"\xff" * 16),
        "JPEG: no quantisation": JPEG[:_QUANTA] + JPEG[_FRAME:],
        "JPEG: no scan": JPEG[:_SCAN] + b"\xff\xd9",
        "JPEG: ends at once": b"\xff\xd8\xff\xd9",
        "JPEG: fill bytes": b"\xff\xd8" + b"\xff" * 3000,
        "JPEG: a segment beyond the end": _patched(JPEG, 4, b"\xff\xff"),
        "JPEG: a segment of 0 bytes": _patched(JPEG, 4, b"\0\0"),
        "JPEG: two frames, the second larger": JPEG[:_SCAN]
        + _patched(JPEG, _FRAME + 5, struct.pack(">HH", 4000, 4000))[_FRAME:_SCAN]
        + JPEG[_SCAN:],
        "JPEG: Exif of garbage": _exif(noise(500)),
        "JPEG: Exif without an end": _exif(b"II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0" + b"\xff" * 40),
        "JPEG: Exif of 2 bytes": JPEG[:2] + b"\xff\xe1\0\2" + JPEG[2:],
        "PNG: signature over garbage": PNG[:8] + noise(3000),
        "PNG: header over garbage": PNG[:33] + noise(3000),
        "PNG: 0 x 0": png(0, 0),
        "PNG: 2147483647 x 2147483647": png(2**31 - 1, 2**31 - 1),
        "PNG: 60000 x 60000": png(60_000, 60_000),
        "PNG: 48 x 20000 of one row": png(48, 20_000, data=bytes(1 + 48 * 3)),
        "PNG: 3 bits": png(8, 8, 3, data=bytes(200)),
        "PNG: colour type 5": png(8, 8, 8, 5, bytes(200)),
        "PNG: no palette": png(8, 8, 8, 3, bytes(72)),
        "PNG: no pixels": png(8, 8),
        "PNG: no data": PNG[:33] + chunk(b"IEND", b""),
        "PNG: bad checksum of the header": _patched(PNG, 29, bytes(4)),
        "PNG: bad data": _patched(PNG, _DATA + 6, b"\xff" * 8),
        "PNG: a chunk beyond the end": _patched(PNG, _DATA - 4, b"\x7f\xff\xff\xff"),
        "PNG: a chunk of 4 GiB": _patched(PNG, _DATA - 4, b"\xff\xff\xff\xff"),
        "PNG: Exif of 2 GiB": png(8, 8, data=bytes(200), extra=b"\x7f\xff\xff\xffeXIf"),
        "PNG: two headers": PNG[:33] + PNG[8:],
        "PNG: 50 MB of zeros packed": png(8, 8, data=bytes(50_000_000)),
        "WebP: signature over garbage": WEBP[:12] + noise(3000),
        "WebP: header over garbage": WEBP[:30] + noise(len(WEBP) - 30),
        "WebP: 0 x 0": _patched(WEBP, 26, bytes(4)),
        "WebP: no sync code": _patched(WEBP, 23, bytes(3)),
        "WebP: longer than it is": _patched(WEBP, 4, b"\xff\xff\xff\x7f"),
        "WebP: 16777216 x 16777216": b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff" * 6 + bytes(10),
        "WebP: lossless garbage": b"RIFF\x80\0\0\0WEBPVP8L\x74\0\0\0\x2f" + bytes(4) + noise(111),
        "WebP: extended, without an image": b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0" + b"\x08" + bytes(3) + b"\7\0\0\7\0\0",
        "WebP: unknown chunk": b"RIFF\x80\0\0\0WEBPXXXX\x74\0\0\0" + noise(116),
        "BMP: header over garbage": BMP[:14] + noise(3000),
        "BMP: 30000 wide": _patched(BMP, 18, struct.pack("<i", 30_000)),
        "BMP: negative width": _patched(BMP, 18, struct.pack("<i", -48)),
        "BMP: 0 wide": _patched(BMP, 18, bytes(4)),
        "BMP: 2147483647 x 2147483647": _patched(BMP, 18, struct.pack("<ii", 2**31 - 1, 2**31 - 1)),
        "BMP: 7 bits": _patched(BMP, 28, b"\7\0"),
        "BMP: unknown compression": _patched(BMP, 30, b"\x09\0\0\0"),
        "BMP: pixels beyond the end": _patched(BMP, 10, struct.pack("<I", 2**31)),
        "BMP: a header of 2 GiB": _patched(BMP, 14, struct.pack("<I", 2**31)),
        "BMP: a palette of 8 GiB": _patched(_patched(BMP, 28, b"\x08\0"), 46, struct.pack("<I", 2**31 - 1)),
    }
    return kinds


# What a decoder may be able to make sense of; all else must be found and listed.
MAY_DECODE = {
    "JPEG: no end",
    "JPEG: scan of garbage",
    "JPEG: 3000 x 3000",
    "JPEG: arithmetic",
    "JPEG: no Huffman tables",
    "JPEG: bad Huffman table",
    "JPEG: Exif of garbage",
    "JPEG: Exif without an end",
    "JPEG: Exif of 2 bytes",
    "PNG: bad checksum of the header",
    "PNG: 50 MB of zeros packed",
    "WebP: header over garbage",
    "BMP: negative width",
    "BMP: 7 bits",
    "BMP: pixels beyond the end",
    "JPEG over 64 MiB of nothing",
    "file that grows",
    "file that shrinks and grows",
}


def _write(content: bytes) -> Callable[[Path], None]:
    return lambda path: _replace(path, lambda new: new.write_bytes(content))


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    """At once, so that a reader meets the old or the new."""
    new = path.with_name("new")
    make(new)
    if new.is_dir() and not new.is_symlink():
        path.unlink()
    os.replace(new, path)


def _socket(path: Path) -> None:
    here = os.open(path.parent, os.O_RDONLY)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


def _hole(path: Path, head: bytes, size: int) -> None:
    path.write_bytes(head)
    os.truncate(path, size)


def _restless(path: Path, sizes: list[int]) -> None:
    """Change the size of a file for a second, as fast as possible."""
    _write(JPEG)(path)
    until = time.monotonic() + 1

    def change() -> None:
        with path.open("r+b") as file:
            for size in itertools.cycle(sizes):
                file.truncate(size)
                file.seek(0)
                file.write(JPEG[:size])
                file.flush()
                if time.monotonic() > until:
                    break

    threading.Thread(target=change, daemon=True).start()


def kinds() -> dict[str, Callable[[Path], object]]:
    """Name to what does the damage to the file at a path."""
    found: dict[str, Callable[[Path], object]] = {name: _write(content) for name, content in contents().items()}
    return found | {
        "deleted": Path.unlink,
        "folder": lambda path: _replace(path, Path.mkdir),
        "FIFO": lambda path: _replace(path, os.mkfifo),
        "socket": lambda path: _replace(path, _socket),
        "endless device": lambda path: _replace(path, lambda new: new.symlink_to("/dev/zero")),
        "empty device": lambda path: _replace(path, lambda new: new.symlink_to("/dev/null")),
        "terminal": lambda path: _replace(path, lambda new: new.symlink_to("/dev/tty")),
        "link to nowhere": lambda path: _replace(path, lambda new: new.symlink_to("nowhere")),
        "link to itself": lambda path: _replace(path, lambda new: new.symlink_to(path.name)),
        "link to its folder": lambda path: _replace(path, lambda new: new.symlink_to(".")),
        "link to a FIFO": lambda path: (os.mkfifo(path.with_suffix(".pipe")), _replace(path, _link(path, ".pipe"))),
        "file of /proc": lambda path: _replace(path, lambda new: new.symlink_to("/proc/self/status")),
        "1 TiB of nothing": lambda path: _replace(path, lambda new: _hole(new, b"", 2**40)),
        "JPEG over a TiB of nothing": lambda path: _replace(path, lambda new: _hole(new, JPEG, 2**40)),
        "JPEG over 64 MiB of nothing": lambda path: _replace(path, lambda new: _hole(new, JPEG[:-500], 2**26)),
        "file that grows": lambda path: _restless(path, [3, 200, 900, len(JPEG)]),
        "file that shrinks and grows": lambda path: _restless(path, [len(JPEG), 900, 200, 0]),
    }


def _link(path: Path, suffix: str) -> Callable[[Path], None]:
    return lambda new: new.symlink_to(path.with_suffix(suffix).name)

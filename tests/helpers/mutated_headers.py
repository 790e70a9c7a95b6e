"""Images of many encoders whose headers were changed at random, and what DALI makes of those that pass the look.

    python -m tests.helpers.mutated_headers --processes 60 --batch 128

decodes batches with some of them, in processes of their own, each up to as many failures as a run meets, and prints
how many of the processes crashed.
"""

import argparse
import functools
import io
import json
import os
import struct
from collections import Counter
from contextlib import suppress

import numpy as np
from PIL import Image

from amcl_fast.data.scan.headers import BadImage, Look, Sight, look
from tests.helpers.damaged_files import png

_OPTIONS: dict[str, dict[str, dict]] = {
    "JPEG": {
        "RGB": {"subsampling": 0},
        "RGB 1": {"subsampling": 1, "comment": b"of a test" * 9},
        "RGB 2": {"subsampling": 2, "progressive": True},
        "RGB 3": {"restart_marker_rows": 1, "icc_profile": bytes(500)},
        "L": {},
        "CMYK": {},
    },
    "PNG": {"1": {}, "L": {"transparency": 3}, "LA": {}, "RGB": {"icc_profile": bytes(500)}, "RGBA": {}, "P": {}},
    "WEBP": {"RGB": {}, "RGB 1": {"lossless": True}, "RGBA": {}, "RGBA 1": {"lossless": True}},
    "BMP": {"1": {}, "L": {}, "RGB": {}, "P": {}, "RGBA": {}},
}
_VALUES = (0, 1, 2, 3, 4, 8, 0x7F, 0x80, 0xFF)
_MOST_PIXELS = 1_000_000  # decoding more takes memory, not headers
# As of `amcl_fast.data.loader.checked`: then nothing is decoded that was not tried out elsewhere.
_FAILURES = 8


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def bmp(width: int, height: int, depth: int, compression: int, header: int = 40, colours: int = 0) -> bytes:
    """A BMP of zeros by hand, of what PIL does not write."""
    palette = bytes(4 << depth if depth <= 8 else 0)
    pixels = bytes((abs(width) * depth + 31) // 32 * 4 * abs(height))
    fields = width, height, 1, depth, compression, len(pixels), 0, 0, colours, 0
    about = struct.pack("<IiiHHIIiiII", header, *fields) + bytes(header - 40) + palette
    return b"BM" + struct.pack("<III", 14 + len(about) + len(pixels), 0, 14 + len(about)) + about + pixels


@functools.cache
def whole() -> tuple[bytes, ...]:
    """Images that decoders know or may know."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 40, 48, 3), np.uint8)
    pictures = [Image.fromarray(one) for one in noise]
    exif = Image.Exif()
    exif[0x0112] = 6

    def encoded(kind: str, mode: str, **options: object) -> bytes:
        buffer = io.BytesIO()
        pictures[0].convert(mode).save(buffer, kind, **options)
        return buffer.getvalue()

    found = [
        encoded(kind, mode.split()[0], **options) for kind, every in _OPTIONS.items() for mode, options in every.items()
    ]
    found += [encoded(kind, "RGB", exif=exif.tobytes()) for kind in ("JPEG", "PNG", "WEBP")]
    films = ({"append_images": pictures[1:]} for _ in range(2))
    found += [encoded(kind, "RGB", save_all=True, **film) for kind, film in zip(("PNG", "WEBP"), films, strict=True)]
    jpeg = found[0]
    for thumbnail in (b"\2\2" + bytes(12), b"\xff\xff" + bytes(12)):
        found.append(jpeg[:2] + _segment(0xE0, b"JFIF\0\1\1\1\0H\0H" + thumbnail) + jpeg[20:])
    for orientation in (0, 9, 65535):
        tag = struct.pack("<HHHIHHI", 1, 0x112, 3, 1, orientation, 0, 0)
        found.append(jpeg[:2] + _segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0" + tag) + jpeg[2:])
    found += [jpeg[:-2] + b"\xff\xdc\0\4\0\x28\xff\xd9", jpeg[:20] + _segment(0xEE, b"Adobe" + bytes(7)) + jpeg[20:]]
    found += [png(20, 20, 16, colour, bytes(20 * (1 + 160))) for colour in (0, 2, 4, 6)]
    found += [bmp(40, -30, 24, 0), bmp(40, 30, 32, 3, 108), bmp(40, 30, 24, 0, 124), bmp(40, 30, 16, 0)]
    found += [bmp(40, 30, 8, 1), bmp(40, 30, 4, 0, colours=5), bmp(40, 30, 8, 0, colours=2**31 - 1)]
    return tuple(found)


def _reach(content: bytes) -> int:
    """Bytes that come before the pixels."""
    if content.startswith(b"\xff\xd8"):
        return content.index(b"\xff\xda") + 14
    return content.index(b"IDAT") + 20 if content.startswith(b"\x89PNG") else 160


def mutated(draw: np.random.Generator) -> bytes:
    """One of the `whole` images with one to three changes of its headers."""
    every = whole()
    content = bytearray(every[draw.integers(len(every))])
    reach = min(_reach(content), len(content))
    for _ in range(draw.integers(1, 4)):
        at, way = int(draw.integers(2, reach)), draw.random()
        if way < 0.8:
            near = int(content[at]) + int(draw.integers(-1, 2))
            content[at] = int(draw.choice([*_VALUES, draw.integers(256), near % 256]))
        elif way < 0.9:
            del content[at : at + int(draw.integers(1, 9))]
        elif way < 0.95:
            content[at:at] = content[at : at + int(draw.integers(1, 40))]
        else:
            del content[int(draw.integers(at, len(content))) :]
        reach = min(reach, len(content))
        if reach < 4:
            break
    return bytes(content)


def seen(content: bytes) -> Sight | None:
    """What the look at an encoded image finds; None if it is bad for certain."""
    with suppress(BadImage):
        return look(lambda at, count: content[at : at + count], len(content))
    return None


def accepted(draw: np.random.Generator) -> bytes:
    """A mutated image of which the look says that DALI can parse it."""
    while True:
        content = mutated(draw)
        sight = seen(content)
        if sight and sight.looks is not Look.UNKNOWN and sight.width * sight.height <= _MOST_PIXELS:
            return content


def decode(seed: int, batch: int, threads: int, batches: int = 200) -> Counter[str]:
    """Decode batches of good images with three accepted ones each, until DALI has failed a few times."""
    from amcl_fast.data.graph import Output, decoding_pipeline

    draw, counts = np.random.default_rng(seed), Counter[str]()
    good = [np.frombuffer(content, np.uint8) for content in whole()[:2]]
    output = Output(size=8, batch_size=batch, num_threads=threads)

    def source(_: int) -> list[np.ndarray]:
        images = [good[number % 2] for number in range(batch)]
        for place in draw.choice(batch, 3, replace=False):
            images[place] = np.frombuffer(accepted(draw), np.uint8)
        counts["images"] += 3
        return images

    pipeline = None
    while counts["failures"] < _FAILURES and counts["batches"] + counts["failures"] < batches:
        try:
            pipeline = pipeline or decoding_pipeline(source, output)
            pipeline.run()
            counts["batches"] += 1
        except RuntimeError:
            pipeline = None
            counts["failures"] += 1
    return counts


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(prog="python -m tests.helpers.mutated_headers", description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, default=60)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    import amcl_fast.data.graph  # noqa: F401, once for all

    total = Counter[str]()
    for number in range(given.processes):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            counts = decode(given.seed * 1000 + number, given.batch, given.threads)
            os.write(writing, json.dumps(counts).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            told = pipe.read()
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            total["crashes"] += 1
            print(f"seed {given.seed * 1000 + number}: crash", flush=True)
        else:
            total.update(json.loads(told))
    print(f"{given.processes} processes, {total['crashes']} crashes, {dict(total)}")


if __name__ == "__main__":
    main()

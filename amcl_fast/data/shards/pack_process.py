"""The processes of `pack`: they read images, judge them and scale them. Neither torch nor numpy is imported here."""

import io
import json
import marshal
import os
from collections.abc import Sequence

from amcl_fast.data.processes.serving import serve_jobs
from amcl_fast.data.reading.contents import Contents
from amcl_fast.data.reading.reduction import encoded, plain, refuse_run_lengths, upright
from amcl_fast.data.scan.headers import BadImage, look
from amcl_fast.data.scan.limits import Limits

Image = tuple[bytes, str, str | None]
"""Bytes, ending of the name without a dot, why it cannot be used."""

_ENDINGS = {b"\xff\xd8\xff": "jpg", b"\x89PN": "png", b"RIF": "webp", b"BM": "bmp"}
# How often larger than wanted an image is from which the last filter makes the wanted one: Pillow's advice.
_GAP = 3.0


def job(locations: Sequence[str], shorter_side: int | None) -> bytes:
    """A job for `answer`: images, and the pixels to which a longer shorter side is scaled."""
    return marshal.dumps((shorter_side, [os.fsencode(location) for location in locations]))


def images(answer: bytes) -> list[Image]:
    """What `answer` says, an image for each location."""
    told, _, content = answer.partition(b"\n")
    found, at = [], 0
    for length, ending, reason in json.loads(told):
        found.append((content[at : at + length], ending, reason))
        at += length
    return found


def main(arguments: list[str]) -> None:
    """Serve a pool, with limits as arguments."""
    limits = Limits.of(arguments)
    contents = Contents(limits)

    def answer(request: bytes) -> bytes:
        shorter_side, locations = marshal.loads(request)
        told: list[tuple[int, str, str | None]] = []
        parts = []
        for location in locations:
            try:
                content = _made(contents, location, shorter_side, limits)
                told.append((len(content), _ending(content), None))
                parts.append(content)
            except BadImage as problem:
                told.append((0, "", str(problem)))
        return b"".join([json.dumps(told).encode(), b"\n", *parts])

    serve_jobs(answer)


def _made(contents: Contents, location: bytes, shorter_side: int | None, limits: Limits) -> bytes:
    room = bytearray()

    def made(size: int) -> memoryview:
        nonlocal room
        room = bytearray(size)
        return memoryview(room)

    length = contents.read(location, made)
    content = bytes(room[:length])
    sight = look(lambda at, count: content[at : at + count], length, limits, at_hand=True)
    known = min(sight.width, sight.height)
    if shorter_side is None or 0 < known <= shorter_side:
        return content
    return scaled(content, shorter_side)


def scaled(content: bytes, shorter_side: int) -> bytes:
    """An encoded image upright with this shorter side, as a JPEG of high quality; one that is no longer, as it is.

    Raises:
        BadImage: it cannot be decoded.
    """
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # the limit is `Limits`
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP", "BMP")) as file:
            refuse_run_lengths(file)
            width, height = file.size
            shorter = min(width, height)
            if shorter <= shorter_side:
                return content
            size = round(width * shorter_side / shorter), round(height * shorter_side / shorter)
            file.draft(None, (round(_GAP * size[0]), round(_GAP * size[1])))
            small = plain(file).resize(size, Image.Resampling.LANCZOS, reducing_gap=_GAP)
            return encoded(upright(small))
    except Exception as error:  # whatever a decoder finds wrong with what strangers wrote
        raise BadImage(f"it cannot be decoded: {' '.join(str(error).split())}") from None


def _ending(content: bytes) -> str:
    return next(ending for magic, ending in _ENDINGS.items() if content.startswith(magic))

"""Large images at half, a quarter or an eighth of their size: as much as the wanted crops need.

DALI holds a whole batch decoded, 72 MB for a photograph of 24 megapixels, and its decoders know no smaller scale.
libjpeg does: it leaves out the high frequencies and decodes faster by doing so.
"""

import io
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from PIL import Image

FACTORS = (2, 4, 8)
"""What libjpeg divides by while it decodes."""
AT_ONCE = 4
"""Of the largest images that may be decoded: as many as are made smaller at once, whatever the number of threads.
Pillow takes up to 12 bytes a pixel."""
# Compressions of BMP that Pillow unpacks in Python, byte by byte: a file of 40 kB with 100 million pixels takes 10 s.
_RUN_LENGTHS = (1, 2)
_PNG = b"\x89PNG\r\n\x1a\n"
_OF_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"}
_QUALITY = 95
_LONGEST = 65_500  # pixels of a JPEG's side
_ORIENTATION = 0x0112
# Of Exif's orientations, what makes such a picture upright.
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
# Pixels by which an image may exceed `Reduction.above` for the sake of its detail.
_DETAILED = 4


class Reduction(NamedTuple):
    """Which images are reduced, and how far.

    Attributes:
        above: pixels up to which an image stays as it is.
        shorter: pixels that the shorter side keeps. For an image that is still more than four times as large as
            `above` this does not hold, so that no shape of an image takes memory without a limit.
    """

    above: int
    shorter: float

    @property
    def most_pixels(self) -> int:
        """Pixels up to which an image stays as it is, where its detail or its damage asks for that."""
        return _DETAILED * self.above

    @property
    def most_bytes(self) -> int:
        """Bytes up to which an encoded image stays as it is: those of `above` pixels of 16 bit RGBA."""
        return 8 * self.above

    def factor(self, width: int, height: int) -> int:
        """By what an image of this size is divided: 1, or one of `FACTORS`."""
        pixels, chosen = width * height, 1
        if pixels > self.above:
            for factor in FACTORS:
                if min(width, height) >= factor * self.shorter or pixels * 4 > self.most_pixels * factor**2:
                    chosen = factor
        return chosen


def reduce(content: bytes, factor: int) -> bytes:
    """An encoded image at 1/factor of its size, upright, as `encoded` makes it.

    JPEGs are decoded at that scale, others whole and averaged; a factor of 1 drops what is no pixel. What cannot be
    decoded here comes back as it is: whether it is bad is not for this function to say.
    """
    try:
        return _reduced(content, factor)
    except Exception:  # whatever a decoder finds wrong with what strangers wrote
        pass
    with suppress(Exception):
        if len(pixels := _pixels_alone(content)) < len(content):
            return _reduced(pixels, factor)
    return content


def _reduced(content: bytes, factor: int) -> bytes:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # the limit is `Limits`
    with Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP", "BMP")) as file:
        refuse_run_lengths(file)
        whole = file.width
        file.draft(None, (max(file.width // factor, 1), max(file.height // factor, 1)))
        rest = factor // round(whole / file.width)
        return encoded(upright(plain(file).reduce(rest)))


def _pixels_alone(content: bytes) -> bytes:
    """A PNG without texts, profiles and the like, of which Pillow refuses long and damaged ones; others as they are."""
    if not content.startswith(_PNG):
        return content
    kept, at = [_PNG], len(_PNG)
    while at < len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        if content[at + 4 : at + 8] in _OF_PIXELS:
            kept.append(content[at:end])
        at = end
    return b"".join(kept)


def refuse_run_lengths(file: "Image.Image") -> None:
    """Keep an opened BMP of run lengths from being unpacked.

    Raises:
        ValueError: it is one.
    """
    if file.info.get("compression") in _RUN_LENGTHS:
        raise ValueError("a BMP of run lengths")


def plain(picture: "Image.Image") -> "Image.Image":
    """The picture in RGB or, of 8 bits, in grey; without what is transparent."""
    if picture.mode.startswith("I"):  # 16 bits
        return picture.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    return picture if picture.mode in ("L", "RGB") else picture.convert("RGB")


def upright(picture: "Image.Image") -> "Image.Image":
    """The picture as its Exif has it turned; as it lies, as DALI has it, where that is no Exif.

    Pillow's own `exif_transpose` fails on an Exif that it cannot read, and on one that it cannot write anew.
    """
    from PIL import Image

    picture.load()  # which turns a TIFF
    try:
        turn = _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # whatever is wrong with what strangers wrote
        turn = None
    return picture if turn is None else picture.transpose(Image.Transpose[turn])


def encoded(picture: "Image.Image") -> bytes:
    """The picture as a JPEG of high quality, with all of its colours; as a PNG where it is too long for one."""
    file = io.BytesIO()
    if max(picture.size) > _LONGEST:
        picture.save(file, "PNG", compress_level=1)
    else:
        picture.save(file, "JPEG", quality=_QUALITY, subsampling=0)
    return file.getvalue()

import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from amcl_fast.data.augment import Augmentation
from amcl_fast.data.graph import Output
from amcl_fast.data.loader.contrastive import ContrastiveLoader
from amcl_fast.data.loader.evaluation import EvaluationLoader
from amcl_fast.data.reading.reader import Reader
from amcl_fast.data.reading.reduction import FACTORS, Reduction, reduce, upright
from amcl_fast.data.scan.images import Images

ABOVE = 40_000


def _picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth picture, of which no two corners look the same, with a little noise."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    return Image.fromarray((pixels + draw.integers(-4, 5, pixels.shape)).clip(0, 255).astype(np.uint8))


def _output(size: int = 32, **settings) -> Output:
    """Pixels from 0 to 255."""
    return Output(size=size, batch_size=2, mean=(0, 0, 0), std=(1 / 255,) * 3, **settings)


def _evaluated(path: str, **settings) -> torch.Tensor:
    ((images, _),) = list(EvaluationLoader(Images([path], [0], ["a"]), _output(**settings)))
    return images[0].clone()


@pytest.mark.parametrize(
    "shape", [(200, 200), (201, 200), (6000, 4000), (20_000, 500), (100_000, 1_000), (9_999, 9_999)]
)
@pytest.mark.parametrize("shorter", [1, 100, 900, 5_000])
def test_the_factor_is_the_largest_that_keeps_the_detail_unless_memory_forbids(shape, shorter):
    above = 2_000_000
    factor = Reduction(above, shorter).factor(*shape)
    pixels = shape[0] * shape[1]
    assert pixels / factor**2 <= 4 * above
    if pixels <= above:
        assert factor == 1
    elif factor > 1:
        fits_with_less = pixels / (factor / 2) ** 2 <= 4 * above
        assert min(shape) / factor >= shorter or not fits_with_less
    if pixels > above and factor < FACTORS[-1]:
        assert min(shape) / (2 * factor) < shorter


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("shape", [(640, 480), (643, 481), (8, 900)])
def test_an_image_becomes_smaller_by_the_factor(factor, shape):
    encoded = io.BytesIO()
    _picture(*shape).save(encoded, "JPEG", quality=95)
    with Image.open(io.BytesIO(reduce(encoded.getvalue(), factor))) as image:
        assert image.format == "JPEG" and image.mode == "RGB"
        assert [abs(side - whole / factor) <= 1 for side, whole in zip(image.size, shape, strict=True)] == [True, True]


def _sixteen_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L"), dtype=np.uint16) * 257)


def _exif(*entries: tuple[int, int, int, int]) -> bytes:
    """Of tag, kind, number and value."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4)


KINDS = {
    "colour.jpg": (lambda image: image, {"quality": 95}),
    "grey.jpg": (lambda image: image.convert("L"), {"quality": 95}),
    "cmyk.jpg": (lambda image: image.convert("CMYK"), {"quality": 95}),
    "progressive.jpg": (lambda image: image, {"quality": 95, "progressive": True}),
    **{f"turned{turn}.jpg": (lambda image: image, {"quality": 95, "turn": turn}) for turn in range(2, 9)},
    "no-exif.jpg": (lambda image: image, {"quality": 95, "exif": b"Exif\0\0neither II nor MM"}),
    # Its description is a fraction, which Pillow reads and cannot write.
    "odd.jpg": (lambda image: image, {"quality": 95, "exif": _exif((0x10E, 5, 1, 8), (0x112, 3, 1, 6))}),
    "no-exif.png": (lambda image: image, {"exif": b"neither II nor MM"}),
    "colour.png": (lambda image: image, {}),
    "grey.png": (lambda image: image.convert("L"), {}),
    "palette.png": (lambda image: image.convert("P", palette=Image.Palette.ADAPTIVE), {}),
    "sixteen.png": (_sixteen_bits, {}),
    "bits.png": (lambda image: image.convert("1"), {}),
    "colour.webp": (lambda image: image, {"lossless": True}),
    "colour.bmp": (lambda image: image, {}),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_reduced_image_shows_what_the_whole_one_shows(name, save):
    change, options = KINDS[name]
    if turn := options.pop("turn", None):
        exif = Image.Exif()
        exif[0x0112] = turn
        options = {**options, "exif": exif}
    path = save(name, change(_picture(900, 640)), **options)
    with open(path, "rb") as file:
        content = file.read()
    reader = Reader(reduction=Reduction(ABOVE, 64))
    reader.request([path])
    (encoded,) = reader.take().images
    assert encoded.tobytes() == reduce(content, 8) != content
    reader.close()
    whole, reduced = _evaluated(path, reduce_above=None), _evaluated(path, reduce_above=ABOVE)
    assert (whole - reduced).abs().mean() < 3  # of 255
    if "bits" not in name:  # dithered
        assert (whole - reduced).abs().max() < 16


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", range(10))
def test_an_image_is_turned_as_pillow_turns_it(kind, turn):
    exif, encoded = Image.Exif(), io.BytesIO()
    exif[0x0112] = turn
    _picture(60, 40).save(encoded, kind, exif=exif)
    wanted, found = (np.asarray(turned(Image.open(encoded))) for turned in (ImageOps.exif_transpose, upright))
    assert np.array_equal(wanted, found)


def test_transparency_is_dropped_as_the_decoder_drops_it(save):
    image = _picture(900, 640)
    image.putalpha(Image.fromarray(np.tile(np.arange(900, dtype=np.uint16) % 256, (640, 1)).astype(np.uint8)))
    path = save("alpha.png", image)
    difference = _evaluated(path, reduce_above=None) - _evaluated(path, reduce_above=ABOVE)
    assert difference.abs().mean() < 3


def test_views_of_a_reduced_image_are_those_of_the_whole_one(save):
    files = [save(f"{seed}.jpg", _picture(900, 640, seed), quality=95) for seed in range(2)]
    views = [Augmentation.from_letters("ade")] * 2
    batches = [
        next(iter(ContrastiveLoader(Images(files, [0, 1], ["a", "b"]), views, _output(reduce_above=above))))[0]
        for above in (None, ABOVE)
    ]
    for whole, reduced in zip(*batches, strict=True):
        assert (whole - reduced).abs().mean() < 4
        assert (whole - reduced).abs().max() > 0
        assert (whole - reduced.flip(0)).abs().mean() > 20


def test_small_images_keep_their_bytes_and_their_place_beside_large_ones(save):
    pictures = [(900, 640), (60, 40), (1000, 700), (50, 50), (100, 100)]
    files = [save(f"{number}.png", _picture(*shape, number)) for number, shape in enumerate(pictures)]
    files.insert(2, files[0] + "-that-does-not-exist")
    reader = Reader(reduction=Reduction(ABOVE, 32), threads=2)
    reader.request(files)
    encoded = reader.take()
    assert list(encoded.bad) == [2]
    for path, image in zip(files, encoded.images, strict=True):
        if path != files[2]:
            with open(path, "rb") as file:
                content = file.read()
            large = path in (files[0], files[3])
            assert image.tobytes() == (reduce(content, 8) if large else content)
    reader.close()


def test_what_the_reducer_cannot_decode_is_handed_on_as_it_is_unless_it_is_too_large(save):
    small, large = save("small.jpg", _picture(380, 400), quality=95), save("large.jpg", _picture(900, 640), quality=95)
    contents = []
    for path in (small, large):
        with open(path, "r+b") as file:
            file.truncate(5_000)
            contents.append(file.read())
        assert reduce(contents[-1], 4) == contents[-1]
    assert 380 * 400 <= Reduction(ABOVE, 32).most_pixels < 900 * 640
    reader = Reader(reduction=Reduction(ABOVE, 32))
    reader.request([small, large])
    encoded = reader.take()
    assert encoded.images[0].tobytes() == contents[0]
    assert [*encoded.bad.items()] == [
        (1, "too large: 900 x 640 pixels in 5,000 bytes, and Pillow, which would make it smaller, cannot decode it")
    ]
    reader.close()


def test_an_image_too_long_for_a_jpeg_is_reduced_to_a_png(save):
    path = save("long.png", Image.new("L", (140_000, 40), 77))
    small = Image.open(io.BytesIO(reduce(Path(path).read_bytes(), 2)))
    assert (small.format, small.size, small.getpixel((69_999, 19))) == ("PNG", (70_000, 20), 77)


def test_an_unusual_image_is_no_longer_doubtful_once_it_is_written_anew(save):
    """A JPEG with an Exif segment too short to be one, which DALI's parser may not survive."""
    path = save("large.jpg", _picture(900, 640), quality=95)
    with open(path, "rb") as file:
        content = file.read()
    frame = content.index(b"\xff\xc0")
    with open(path, "wb") as file:
        file.write(content[:frame] + b"\xff\xe1\0\4ab" + content[frame:])
    doubts = []
    for reduction in (None, Reduction(ABOVE, 32)):
        reader = Reader(reduction=reduction)
        reader.request([path])
        doubts.append(reader.take().doubtful)
        reader.close()
    assert doubts == [[0], []]


def test_the_least_share_is_that_of_the_smallest_crop():
    assert Augmentation(crop_scale=None).least_share == 1
    assert Augmentation(crop_scale=(0.25, 1), crop_ratio=(1, 1)).least_share == 0.5
    assert Augmentation(crop_scale=(0.08, 1), crop_ratio=(3 / 4, 4 / 3)).least_share == pytest.approx(
        (0.08 * 0.75) ** 0.5
    )
    assert Augmentation(crop_scale=(1, 1), crop_ratio=(2, 3)).least_share == pytest.approx(3**-0.5)


_MEASURED = """
import re, sys
from amcl_fast.data.augment import Augmentation
from amcl_fast.data.loader.contrastive import ContrastiveLoader
from amcl_fast.data.graph import Output
from amcl_fast.data.scan.images import Images

def peak():  # in kB; getrusage's outlives exec, so it may be that of this process's parent
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

before = peak()
images = Images([sys.argv[1]] * 6, [0] * 6, ["a"])
views = [Augmentation.from_letters("ae")] * 2
for above in (2_000_000, None):  # the smaller peak first
    next(iter(ContrastiveLoader(images, views, Output(size=64, batch_size=6, reduce_above=above))))
    print((peak() - before) // 1024)
"""


@pytest.mark.slow
def test_a_batch_of_photographs_fits_into_memory(save):
    """Six of 24 megapixels, 72 MB each when they are decoded."""
    path = save("photograph.jpg", _picture(750, 500).resize((6000, 4000)), quality=90)
    done = subprocess.run([sys.executable, "-c", _MEASURED, path], capture_output=True, text=True)
    reduced, whole = map(int, done.stdout.split())
    assert whole > 3 * 72
    assert reduced < whole / 3

import io
import os
import struct

import numpy as np
import pytest
from PIL import Image

from amcl_fast.data.scan.headers import BadImage, check_header

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))


def encoded(kind, image=NOISE, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def verdict(tmp_path, content):
    path = tmp_path / "file.jpg"  # the name never matters
    path.write_bytes(content)
    return check_header(str(path))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"exif": b"Exif\0\0" + bytes(60_000)}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
    ],
)
def test_good_images_pass_without_decoding(tmp_path, kind, options):
    assert verdict(tmp_path, encoded(kind, **options))


def test_the_extended_webp_and_other_modes_pass(tmp_path):
    assert verdict(tmp_path, encoded("WEBP", NOISE.convert("RGBA")))
    assert verdict(tmp_path, encoded("JPEG", NOISE.convert("CMYK")))
    assert verdict(tmp_path, encoded("JPEG", NOISE.convert("L")))
    assert verdict(tmp_path, encoded("PNG", Image.fromarray(np.zeros((4, 4), np.uint16))))


def test_a_missing_end_marker_is_a_case_for_the_decoder(tmp_path):
    content = encoded("JPEG")
    assert not verdict(tmp_path, content[: len(content) // 2])
    assert not verdict(tmp_path, content + b"trailing data")
    assert not verdict(tmp_path, encoded("PNG") + b"trailing data")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"hello world", "not an image .*starts with b'hello wo'"),
        (bytes(100), "not an image"),
        (encoded("GIF"), "GIF is not supported"),
        (encoded("GIF", save_all=True, append_images=[NOISE]), "GIF is not supported"),
        (encoded("TIFF"), "TIFF is not supported"),
        (encoded("TIFF", big_tiff=True), "TIFF is not supported"),
        (encoded("AVIF"), "AVIF is not supported"),
        (encoded("JPEG2000"), "JPEG 2000 is not supported"),
        (encoded("JPEG2000", no_jp2=True), "JPEG 2000 is not supported"),
        (encoded("ICO"), "ICO is not supported"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(90), "HEIC is not supported"),
        (b"\0\0\0\x18ftypheix\0\0\0\0mif1heix" + bytes(90), "HEIC is not supported"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(90), "HEIC is not supported"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf" + bytes(90), "AVIF is not supported"),
        (b"\0\0\0\x18ftypavis\0\0\0\0avisavif" + bytes(90), "AVIF is not supported"),
        (b"\0\0\0\x14ftypmif1\0\0\0\0miafavif", "HEIF is not supported"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(90), "video .* is not supported"),
        (b"\xff\x0a\x7f\x10" + bytes(90), "JPEG XL is not supported"),
        (b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl " + bytes(90), "JPEG XL is not supported"),
        (b"8BPS\0\1" + bytes(90), "Photoshop is not supported"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG is not supported"),
        (b"\xef\xbb\xbf\n<?xml version='1.0'?>\n<!-- " + b"drawn " * 20 + b"-->\n<svg/>", "SVG is not supported"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML is not supported"),
        (b"<!DOCTYPE html>\n<title>404</title>", r"HTML \(a failed download\?\) is not supported"),
        (b"\n  <HTML><body>no such page", r"HTML \(a failed download\?\) is not supported"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS's pointer to a file is not supported"),
        (b"<not markup", "not an image"),
        (encoded("JPEG")[:60], "truncated or corrupt JPEG: no frame header"),
        (encoded("PNG")[:20], "truncated or corrupt PNG: no header"),
        (encoded("PNG")[:3000], "truncated or corrupt PNG: no end"),
        (encoded("WEBP")[:-10], "truncated WebP"),
        (encoded("BMP")[:-10], "truncated BMP"),
    ],
)
def test_bad_files_are_named_for_what_they_are(tmp_path, content, reason):
    with pytest.raises(BadImage, match=reason):
        verdict(tmp_path, content)


def test_a_jpeg_without_pixels_after_its_header_is_refused(tmp_path):
    content = encoded("JPEG")
    scan = content.index(b"\xff\xda")
    with pytest.raises(BadImage, match="no pixels"):
        verdict(tmp_path, content[:scan])
    with pytest.raises(BadImage, match="no frame header"):
        verdict(tmp_path, content[:2] + content[scan:])


def png_header(width, height):
    return encoded("PNG")[:16] + struct.pack(">II", width, height) + encoded("PNG")[24:]


def jpeg_header(width, height):
    content = bytearray(encoded("JPEG"))
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(content)


@pytest.mark.parametrize("header", [png_header, jpeg_header])
def test_the_number_of_pixels_is_bounded_but_not_the_side(tmp_path, header):
    assert verdict(tmp_path, header(30_000, 3_000))
    with pytest.raises(BadImage, match=r"too large: 30000 x 4000 pixels; at most 100,000,000"):
        verdict(tmp_path, header(30_000, 4_000))
    with pytest.raises(BadImage, match="impossible size: 0 x 10"):
        verdict(tmp_path, header(0, 10))


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadImage, match="not a regular file"):
        check_header(str(tmp_path / "pipe.jpg"))
    with pytest.raises(BadImage, match="dangling link"):
        check_header(str(tmp_path / "link.jpg"))
    with pytest.raises(BadImage, match="no such file"):
        check_header(str(tmp_path / "absent.jpg"))


def test_a_file_without_permission_is_refused(tmp_path, monkeypatch):
    def denied(*arguments):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "secret.jpg").write_bytes(encoded("JPEG"))
    monkeypatch.setattr("amcl_fast.data.scan.headers.os.open", denied)
    with pytest.raises(BadImage, match="cannot be read: Permission denied"):
        check_header(str(tmp_path / "secret.jpg"))

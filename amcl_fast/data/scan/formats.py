"""Names of formats that are not trained on, so that whoever has them is told of what they are."""

from collections.abc import Callable

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
CONVERTIBLE = {"GIF", "TIFF", "JPEG 2000", "AVIF", "HEIC", "HEIF", "ICO", "PNM", "Photoshop"}
"""What `amcl_fast.data.convert` takes, HEIC with a package of its own."""
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


def other_format(read: Callable[[int, int], bytes], head: bytes) -> str | None:
    """Name of a format that is not supported, by how a file begins; None if it is not known."""
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

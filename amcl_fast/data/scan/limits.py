"""How large an image may be, encoded and decoded, and how long decoding it may take.

Neither depends on the machine or on a clock, so that the same images are left out everywhere. Neither torch nor numpy
is imported here.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

from amcl_fast.left_out import TOO_LARGE

SCANS = 20
"""Scans that a JPEG of the most pixels may have, a smaller one more. Encoders write 10 of a progressive one, 15 at
most. A decoder passes over all pixels in each, however few bytes it has: 0.35 ns a pixel, measured once, by hand."""


MOST_SCANS = 256
"""Scans of a JPEG beyond which DALI (2.4.0) decodes none, however small it is."""


class Limits(NamedTuple):
    """The largest image that is accepted.

    Attributes:
        bytes: of its file or member of a tar: `data.max_image_bytes`.
        pixels: width times height: `data.max_image_pixels`.
    """

    bytes: int = 200_000_000
    pixels: int = 100_000_000

    @property
    def key(self) -> str:
        """What tells apart what is kept for these limits and for others; "" for those that are the default."""
        return "" if self == DEFAULT_LIMITS else f"\0{self.bytes} bytes, {self.pixels} pixels"

    @property
    def arguments(self) -> list[str]:
        """For a process's `main`, which makes the same of them by `of`."""
        return [str(self.bytes), str(self.pixels)]

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Self:
        """The reverse of `arguments`."""
        return cls(*map(int, arguments))

    def refuse_bytes(self, size: int) -> str:
        """Why an image of so many bytes is left out, "" if it is not."""
        return self._above(f"{size:,} bytes", self.bytes, "bytes") if size > self.bytes else ""

    def refuse_pixels(self, width: int, height: int) -> str:
        """Why an image of so many pixels is left out, "" if it is not."""
        many = width * height > self.pixels
        return self._above(f"{width} x {height} pixels", self.pixels, "pixels") if many else ""

    def may_take_long(self, pixels: int, scans: int) -> bool:
        """Whether so many scans of an image of so many pixels are too many."""
        return scans > self._most_scans(pixels)

    def refuse_scans(self, pixels: int, scans: int) -> str:
        """Why a JPEG is left out that may take long."""
        most = self._most_scans(pixels)
        found = f"{scans:,} scans of {pixels:,} pixels"
        if most == MOST_SCANS:  # no limit of pixels would change it
            return f"{TOO_LARGE}: {found}; at most {most} are decoded"
        return self._above(found, most, "pixels")

    def _most_scans(self, pixels: int) -> int:
        return min(SCANS * self.pixels // pixels, MOST_SCANS)

    @staticmethod
    def _above(found: str, most: int, setting: str) -> str:
        return f"{TOO_LARGE}: {found}; at most {most:,} are accepted (data.max_image_{setting})"


DEFAULT_LIMITS = Limits()
"""They lose no image of ImageNet (the largest has 15 MB, another 75 million pixels; from memory), no photograph of a
camera up to 100 megapixels, and bound what one image takes: 300 MB decoded."""

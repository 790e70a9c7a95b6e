"""What is done to an image to make one view of it: the random augmentations and their strengths."""

from dataclasses import dataclass
from math import isfinite, sqrt

from amcl_fast.setting_types import check_fields

_LETTERS = "abcdes"


@dataclass(frozen=True)
class Augmentation:
    """Random augmentations of one view, in the order in which they are applied.

    Crop, colour jitter, greyscale, blur, solarisation, flip. A probability of 0 removes an augmentation from the graph.
    The defaults are those of the letters "acde".

    Attributes:
        crop_scale: range of the area of the random resized crop, as a share of the image's; None scales the
            shorter side to the wanted size and crops the centre, with nothing random in it.
        crop_ratio: range of the crop's width over its height, drawn log-uniformly.
        flip: probability of a horizontal flip.
        jitter: probability of colour jitter.
        jitter_strength: s. Brightness, contrast and saturation are multiplied by factors from
            [1 - 0.8 s, 1 + 0.8 s], and the hue is turned by at most 0.2 s of a full circle (SimCLR, appendix
            A).
        grey: probability of greyscale.
        blur: probability of Gaussian blur.
        blur_sigma: range of the blur's standard deviation, in pixels of the view, at most 100.
        solarise: probability of solarisation (BYOL, arXiv 2006.07733, appendix B).
        solarise_threshold: values of 0 to 255 that are not below it become 255 minus themselves, as by torchvision's
            `solarize`.

    Raises:
        TypeError: a setting of another type.
        ValueError: a probability or the strength outside [0, 1], a range that is not 0 < low <= high (the
            area's: <= 1), or a threshold outside 0 to 255.
    """

    crop_scale: tuple[float, float] | None = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    jitter_strength: float = 0.5
    grey: float = 0.2
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.0
    solarise_threshold: int = 128

    def __post_init__(self) -> None:
        check_fields(self, "views")
        for name in ("flip", "jitter", "grey", "blur", "solarise"):
            _check_share(name, getattr(self, name), "a probability between 0 and 1")
        _check_share("jitter_strength", self.jitter_strength, "a strength between 0 and 1")
        if self.crop_scale is not None:
            _check_range("crop_scale", self.crop_scale, highest=1.0)
        _check_range("crop_ratio", self.crop_ratio)
        _check_range("blur_sigma", self.blur_sigma, highest=100.0)  # DALI's window is six times as wide
        if not 0 <= self.solarise_threshold <= 255:
            raise ValueError(f"solarise_threshold must be from 0 to 255, got {self.solarise_threshold}")

    @property
    def least_share(self) -> float:
        """The shorter side of the smallest crop, as a share of the image's shorter side."""
        if self.crop_scale is None:
            return 1.0
        narrowest = min(self.crop_ratio[0], 1 / self.crop_ratio[1], 1.0)
        return sqrt(self.crop_scale[0] * narrowest)

    @classmethod
    def from_letters(cls, letters: str) -> "Augmentation":
        """The released recipe's shortcut: any of a crop, b blur, c greyscale, d colour jitter, e flip; s solarisation.

        Args:
            letters: a subset of "abcdes" in any order, each at most once; "" leaves only the resize.

        Raises:
            ValueError: another letter, or one that repeats.
        """
        if set(letters) - set(_LETTERS) or len(set(letters)) != len(letters):
            raise ValueError(f"augmentation must be letters out of {_LETTERS!r}, each at most once, got {letters!r}")
        return cls(
            crop_scale=(0.08, 1.0) if "a" in letters else None,
            blur=0.5 if "b" in letters else 0.0,
            grey=0.2 if "c" in letters else 0.0,
            jitter=0.8 if "d" in letters else 0.0,
            flip=0.5 if "e" in letters else 0.0,
            solarise=0.2 if "s" in letters else 0.0,
        )


def _check_share(name: str, value: float, meaning: str) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be {meaning}, got {value!r}")


def _check_range(name: str, bounds: tuple[float, float], highest: float = float("inf")) -> None:
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] <= highest or not isfinite(bounds[1]):
        limit = "" if highest == float("inf") else f" <= {highest:g}"
        raise ValueError(f"{name} must be (low, high) with 0 < low <= high{limit}, got {bounds!r}")

"""Two augmented views of each image by PIL and torchvision v2, as SimCLR's re-implementations write them."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from amcl_fast.data import Augmentation


def view_steps(size: int, augmentation: Augmentation) -> list[torch.nn.Module]:
    """The transforms, in their order, that make one view (size, size) of a PIL image."""
    s = augmentation.jitter_strength
    jitter = v2.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s)
    # SimCLR's window, a tenth of the side, and odd.
    blur = v2.GaussianBlur(max(3, size // 10 // 2 * 2 + 1), augmentation.blur_sigma)
    crop: list[torch.nn.Module] = [v2.Resize(size), v2.CenterCrop(size)]
    if augmentation.crop_scale is not None:
        crop = [v2.RandomResizedCrop(size, augmentation.crop_scale, augmentation.crop_ratio)]
    return [
        *crop,
        *([v2.RandomApply([jitter], augmentation.jitter)] if augmentation.jitter else []),
        *([v2.RandomGrayscale(augmentation.grey)] if augmentation.grey else []),
        *([v2.RandomApply([blur], augmentation.blur)] if augmentation.blur else []),
        *([v2.RandomHorizontalFlip(augmentation.flip)] if augmentation.flip else []),
    ]


class Views(torch.utils.data.Dataset):
    """Image files as pairs of views, each (3, size, size) float32; an image is decoded once.

    Args:
        files: paths.
        size: side of the views, in pixels.
        augmentation: the same one as the DALI graph's.
        mean, std: per channel, of pixels in [0, 1].
    """

    def __init__(
        self, files: Sequence[str], size: int, augmentation: Augmentation, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self._files = list(files)
        steps = [
            *view_steps(size, augmentation),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(mean), list(std)),
        ]
        self._view = v2.Compose(steps)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with Image.open(self._files[index]) as opened:
            image = opened.convert("RGB")
        return self._view(image), self._view(image)

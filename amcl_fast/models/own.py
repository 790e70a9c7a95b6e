"""Encoders of a user's own: any module that gives a vector an image."""

import pydoc
import re
from typing import Any

import torch
from torch import Tensor, nn

from .features import INSIDE, feature_dim, in_a_line

# Of images that are tried out where nobody says how large they are.
_SIZES = (224, 32, 64, 96, 128, 256, 384)
# As amcl_fast.runs.settings finds such names: `locate` takes `a..B` for a.B, and nobody would ask for --trust.
_PATH = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+")


class OwnEncoder(nn.Module):
    """A module of a user's own, in the memory format that it takes.

    Args:
        model: images (n, 3, H, W) to features (n, D).
        name: for errors.
        size: side of the images in pixels; None: whichever it takes.

    Attributes:
        feature_dim: width D of the features, as a forward pass gives it.
        takes_size: whether it is built for the size that was given: who could tell.

    Raises:
        ValueError: it cannot take such images, or gives no vectors.
    """

    takes_size = True

    def __init__(self, model: nn.Module, name: str, size: int | None) -> None:
        super().__init__()
        self.model = model
        self.feature_dim = self._measured(name, size)
        self.channels_last = self._takes_channels_last(name)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images if self.channels_last else images.contiguous())

    def _measured(self, name: str, size: int | None) -> int:
        told: list[ValueError] = []
        for self._size in _SIZES if size is None else (size,):
            try:
                return feature_dim(self.model, name, self._size)
            except ValueError as error:
                told.append(error)
        if size is None:
            tried = f"images of {', '.join(map(str, _SIZES))} px were tried; BackboneConfig takes another size"
            raise ValueError(f"{told[0]} ({tried})") from told[0]
        raise told[0]

    def _takes_channels_last(self, name: str) -> bool:
        """Whether convolutions may be in that format: a `view` of what they give would be refused there."""
        convolutions = [module for module in self.model.modules() if isinstance(module, nn.Conv2d)]
        weights = [convolution.weight.data for convolution in convolutions]
        for convolution in convolutions:
            convolution.weight.data = convolution.weight.data.contiguous(memory_format=torch.channels_last)
        try:
            feature_dim(self.model, name, self._size, channels_last=True)
        except ValueError:
            for convolution, weight in zip(convolutions, weights, strict=True):
                convolution.weight.data = weight
            return False
        return True


def of_class(path: str, arguments: dict[str, Any]) -> nn.Module:
    """An instance of the class at `package.module.Class`, which is imported.

    Raises:
        ValueError: there is no such class, it is none of nn.Module, or it does not take the arguments.
    """
    if not _PATH.fullmatch(path):
        raise ValueError(f"backbone must be the path of a class, package.module.Class, got {path!r}")
    try:
        found = pydoc.locate(path)
    except pydoc.ErrorDuringImport as error:
        raise ValueError(f"backbone must be a class that can be imported, got {path!r}: {in_a_line(error)}") from error
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        what = "which is none" if found is not None else "which is not found (is its folder in PYTHONPATH?)"
        raise ValueError(f"backbone must be a class of torch.nn.Module, got {path!r}, {what}")
    try:
        return found(**arguments)
    except INSIDE as error:
        raise ValueError(
            f"backbone.arguments must be those of {path}, got an error of it: {in_a_line(error)}"
        ) from error

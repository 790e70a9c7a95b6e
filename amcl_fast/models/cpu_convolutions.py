"""Convolutions whose gradients torch 2.11 gets wrong on the CPU, and how encoders get them right.

Both faults are oneDNN's and were found by training: weights became infinite now and then. Either way the result is that
of the convolution as it stands; neither touches a GPU.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SAFE_CHANNELS = 16
_HALVES = (torch.bfloat16, torch.float16)


def guard_convolutions(module: nn.Module) -> None:
    """Have the convolutions of `module` meet neither fault."""
    for conv in module.modules():
        if not isinstance(conv, nn.Conv2d):
            continue
        if _corrupts(conv):
            # A clone: what `contiguous` gives of 1 × 1 weights still has the strides of channels_last.
            conv.weight.data = conv.weight.data.clone(memory_format=torch.contiguous_format)
            _read_by(conv, _contiguous)
        if _leaves_gaps(conv):
            _read_by(conv, _filled)


def _read_by(conv: nn.Module, change: Callable[[Any, Tensor], Tensor]) -> None:
    conv.register_forward_pre_hook(partial(_changed, change), with_kwargs=True)


def _changed(
    change: Callable[[Any, Tensor], Tensor], conv: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]] | None:
    images, *others = inputs or named.values()
    # One image (C, H, W) is for whoever asks for it: training has batches.
    if others or images.dim() != 4 or images.device.type != "cpu":
        return None
    return (change(conv, images),), {}


def _corrupts(conv: nn.Conv2d) -> bool:
    """Whether its weights' gradient in channels_last corrupts memory.

    Measured with strides of 2 to 4 and images of 48 pixels or more: 1 to 15 channels do, 16 and more and groups do not.
    MobileOne, FastViT and RepVGG have one that reads the image, a ResNet-18 or -34 of width 8 one of 8 channels.
    """
    small = conv.in_channels < _SAFE_CHANNELS and conv.groups == 1
    return conv.kernel_size == (1, 1) and max(conv.stride) > 1 and small


def _contiguous(conv: nn.Module, images: Tensor) -> Tensor:
    return images.clone(memory_format=torch.contiguous_format)


def _leaves_gaps(conv: nn.Conv2d) -> bool:
    """Whether half precision may leave places of its weights' gradient unwritten.

    Measured: those of weights that meet padding alone, in images smaller than the stride. Images of 16 pixels are one
    pixel large before the last stage of a ResNet with the standard stem.
    """
    if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return False  # subclasses may pad by the size of what they are given
    return max(conv.stride) > 1 and max(conv.kernel_size) > 1


def _filled(conv: Any, images: Tensor) -> Tensor:
    """The input with zeros below and to the right, where the convolution has them from its padding or never looks."""
    halved = images.dtype in _HALVES or torch.is_autocast_enabled("cpu")
    if not halved or min(images.shape[-2:]) >= max(conv.stride):
        return images
    missing = []
    for axis in (1, 0):
        side = images.shape[2 + axis]
        reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1
        unused = (conv.stride[axis] - 1) - (side + 2 * conv.padding[axis] - reach) % conv.stride[axis]
        missing += [0, max(0, min(conv.stride[axis] - side, unused))]
    return F.pad(images, missing)

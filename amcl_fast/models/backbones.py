"""Encoders: images (n, 3, H, W) to features (n, feature_dim), channels_last."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from ..extras import extras_named
from .modes import in_mode

RESNETS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}
TIMM_PREFIX = "timm/"
_STANDARD_WIDTH = 64
_SAFE_CHANNELS = 16
_LARGEST_SIZE = 2048  # pixels; a file from elsewhere may say anything


@dataclass(frozen=True)
class BackboneConfig:
    """Which encoder to build.

    Attributes:
        name: resnet18, resnet34, resnet50, or `timm/<name>` for any model of timm.
        stem: `standard` (7×7 stride 2, then max-pool) or `small` (3×3 stride 1, no pooling) for images of
            about 32 to 64 pixels. ResNets only.
        width: channels of the first stage of a ResNet; 64 is the published network.
        size: side of the images in pixels, for the models of timm that are built for one (ViT, Swin and others);
            None: timm's. `amcl-fast pretrain` sets it to data.size. ResNets take any size, and no setting of it.
        arguments: further arguments of the constructor of timm's models, by name.
    """

    name: str = "resnet18"
    stem: Literal["standard", "small"] = "standard"
    width: int = _STANDARD_WIDTH
    size: int | None = None
    arguments: dict[str, Any] = field(default_factory=dict)


class _ResNetEncoder(ResNet):
    """torchvision's ResNet without classifier, with a stem for small images and any width.

    Attributes:
        feature_dim: width of the features.
    """

    def __init__(self, block: type[BasicBlock | Bottleneck], layers: list[int], stem: str, width: int) -> None:
        self._width = width
        super().__init__(block, layers)
        # The parent has built its stem and head at their published sizes.
        kernel, stride, padding = (3, 1, 1) if stem == "small" else (7, 2, 3)
        self.conv1 = nn.Conv2d(3, width, kernel, stride, padding, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = nn.BatchNorm2d(width)
        if stem == "small":
            self.maxpool = nn.Identity()  # type: ignore[assignment]
        self.feature_dim = 512 * block.expansion * width // _STANDARD_WIDTH
        self.fc = nn.Identity()  # type: ignore[assignment]

    def _make_layer(
        self,
        block: type[BasicBlock | Bottleneck],
        planes: int,
        blocks: int,
        stride: int = 1,
        dilate: bool = False,
    ) -> nn.Sequential:
        if planes == _STANDARD_WIDTH:
            self.inplanes = self._width
        return super()._make_layer(block, planes * self._width // _STANDARD_WIDTH, blocks, stride, dilate)


class _TimmEncoder(nn.Module):
    """A model of timm without its classifier.

    Args:
        name: timm's.
        size: side of the images; None: timm's.
        arguments: of timm's constructor.

    Attributes:
        feature_dim: width of the features, as a forward pass gives it: timm's `num_features` is that of a layer
            before in some families (MobileNetV3, GhostNet, LCNet, EfficientViT, HGNet).
        takes_size: whether the model is built for the size that was given.
    """

    def __init__(self, name: str, size: int | None, arguments: dict[str, Any]) -> None:
        super().__init__()
        if size is not None and not 1 <= size <= _LARGEST_SIZE:
            raise ValueError(f"backbone.size must be between 1 and {_LARGEST_SIZE}, got {size}")
        self.model, self.takes_size = _create(name, size, arguments)
        self.feature_dim = _feature_dim(self.model, name, size or _own_size(self.model))

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def _check_is_of_timm(name: str) -> None:
    with extras_named(f"backbone {TIMM_PREFIX}{name}"):
        import timm
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('.')[0]}*")[:8])
        raise ValueError(f"backbone must be a model of timm, got {name!r}{f'; close to it: {close}' if close else ''}")


def _create(name: str, size: int | None, arguments: dict[str, Any]) -> tuple[nn.Module, bool]:
    """timm's model for images of `size`, and whether it is built for one."""
    import timm

    state = torch.get_rng_state()
    with _told(name, size):
        try:
            given: dict[str, Any] = {} if size is None else {"img_size": size}
            return timm.create_model(name, pretrained=False, num_classes=0, **arguments, **given), bool(given)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            torch.set_rng_state(state)
            return timm.create_model(name, pretrained=False, num_classes=0, **arguments), False


def _own_size(model: Any) -> int:
    return int(model.pretrained_cfg.get("input_size", (3, 224, 224))[-1])


def _feature_dim(model: nn.Module, name: str, size: int) -> int:
    """Width of the features; neither running statistics nor random generators change."""
    with _told(name, size), torch.no_grad(), torch.random.fork_rng(devices=[]), in_mode(model, training=False):
        features = model(torch.zeros(1, 3, size, size))
    shape = tuple(getattr(features, "shape", ()))
    if len(shape) != 2:
        found = f"shape {('n', *shape[1:])}".replace("'", "") if shape else type(features).__name__
        raise ValueError(f"backbone must give features (n, D), got {found} from {TIMM_PREFIX}{name}")
    return shape[1]


@contextmanager
def _told(name: str, size: int | None) -> Iterator[None]:
    """Errors of timm's inside become one that names model and size."""
    try:
        yield
    except (AssertionError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())
        sized = "" if size is None else f" of {size} × {size} px (data.size)"
        raise ValueError(
            f"{TIMM_PREFIX}{name} cannot take images{sized}: {said[:200] or type(error).__name__}"
        ) from error


def build_backbone(config: BackboneConfig) -> nn.Module:
    """The encoder of `config` in channels_last, its width of features as attribute `feature_dim`.

    Raises:
        ValueError: unknown name; a stem, width or size that the encoder does not have or cannot take; or features
            that are no vectors.
        ImportError: a timm name without timm.
    """
    backbone: nn.Module
    if config.name.startswith(TIMM_PREFIX):
        name = config.name.removeprefix(TIMM_PREFIX)
        _check_is_of_timm(name)
        if config.stem != "standard" or config.width != _STANDARD_WIDTH:
            raise ValueError(
                f"backbone.stem and backbone.width must be standard and {_STANDARD_WIDTH} with {config.name}, for they "
                f"are settings of ResNets, got {config.stem} and {config.width}"
            )
        backbone = _TimmEncoder(name, config.size, config.arguments)
    elif config.name in RESNETS:
        if config.stem not in ("standard", "small"):
            raise ValueError(f"backbone.stem must be 'standard' or 'small', got {config.stem!r}")
        if config.width < 8 or config.width % 8:
            raise ValueError(f"backbone.width must be a positive multiple of 8, got {config.width}")
        if config.size is not None:
            raise ValueError(
                f"backbone.size must be unset with {config.name}, which takes images of any size, for it is a setting "
                f"of timm's models, got {config.size}"
            )
        block, layers = RESNETS[config.name]
        backbone = _ResNetEncoder(block, layers, config.stem, config.width)
    else:
        raise ValueError(f"backbone must be one of {', '.join(RESNETS)} or timm/<name>, got {config.name!r}")
    backbone = backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d) and _corrupts(module):
            # A clone: what `contiguous` gives of 1 × 1 weights still has the strides of channels_last.
            module.weight.data = module.weight.data.clone(memory_format=torch.contiguous_format)
            module.register_forward_pre_hook(_contiguous_on_the_cpu)
    return backbone


def _corrupts(conv: nn.Conv2d) -> bool:
    """Whether its weights' gradient in channels_last corrupts the memory of the CPU (torch 2.11).

    Measured with strides of 2 to 4 and images of 48 pixels or more: 1 to 15 channels do, 16 and more and groups do not.
    MobileOne, FastViT and RepVGG have one that reads the image, a ResNet-18 or -34 of width 8 one of 8 channels.
    """
    small = conv.in_channels < _SAFE_CHANNELS and conv.groups == 1
    return conv.kernel_size == (1, 1) and max(conv.stride) > 1 and small


def _contiguous_on_the_cpu(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
    (images,) = inputs
    return (images.clone(memory_format=torch.contiguous_format),) if images.device.type == "cpu" else None

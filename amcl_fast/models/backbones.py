"""Encoders: images (n, 3, H, W) to features (n, feature_dim), channels_last."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

RESNETS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}
TIMM_PREFIX = "timm/"
_STANDARD_WIDTH = 64


@dataclass(frozen=True)
class BackboneConfig:
    """Which encoder to build.

    Attributes:
        name: resnet18, resnet34, resnet50, or `timm/<name>` for any model of timm.
        stem: `standard` (7×7 stride 2, then max-pool) or `small` (3×3 stride 1, no pooling) for images of
            about 32 to 64 pixels. ResNets only.
        width: channels of the first stage of a ResNet; 64 is the published network.
    """

    name: str = "resnet18"
    stem: Literal["standard", "small"] = "standard"
    width: int = _STANDARD_WIDTH


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

    Attributes:
        feature_dim: width of the features.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ImportError(
                f"backbone {TIMM_PREFIX}{name} needs timm; install it with: pip install 'amcl_fast[timm]'"
            ) from error
        if not timm.is_model(name):
            close = ", ".join(timm.list_models(f"*{name.split('.')[0]}*")[:8])
            raise ValueError(f"timm has no model {name!r}{f'; close to it: {close}' if close else ''}")
        self.model = timm.create_model(name, pretrained=False, num_classes=0)
        self.feature_dim: int = self.model.num_features  # type: ignore[assignment]

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def build_backbone(config: BackboneConfig) -> nn.Module:
    """The encoder of `config` in channels_last, its width of features as attribute `feature_dim`.

    Raises:
        ValueError: unknown name, or a stem or width that the encoder does not have.
        ImportError: a timm name without timm.
    """
    backbone: nn.Module
    if config.name.startswith(TIMM_PREFIX):
        if config.stem != "standard" or config.width != _STANDARD_WIDTH:
            raise ValueError(
                f"stem and width are settings of ResNets; {config.name} takes neither, "
                f"got stem={config.stem!r}, width={config.width}"
            )
        backbone = _TimmEncoder(config.name.removeprefix(TIMM_PREFIX))
    elif config.name in RESNETS:
        if config.stem not in ("standard", "small"):
            raise ValueError(f"stem must be 'standard' or 'small', got {config.stem!r}")
        if config.width < 8 or config.width % 8:
            raise ValueError(f"width must be a positive multiple of 8, got {config.width}")
        block, layers = RESNETS[config.name]
        backbone = _ResNetEncoder(block, layers, config.stem, config.width)
    else:
        raise ValueError(f"backbone must be one of {', '.join(RESNETS)} or timm/<name>, got {config.name!r}")
    return backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

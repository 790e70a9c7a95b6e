"""torchvision's ResNets without classifier."""

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

RESNETS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}
STANDARD_WIDTH = 64


class ResNetEncoder(ResNet):
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
        self.feature_dim = 512 * block.expansion * width // STANDARD_WIDTH
        self.fc = nn.Identity()  # type: ignore[assignment]

    def _make_layer(
        self,
        block: type[BasicBlock | Bottleneck],
        planes: int,
        blocks: int,
        stride: int = 1,
        dilate: bool = False,
    ) -> nn.Sequential:
        if planes == STANDARD_WIDTH:
            self.inplanes = self._width
        return super()._make_layer(block, planes * self._width // STANDARD_WIDTH, blocks, stride, dilate)

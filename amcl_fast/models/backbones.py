"""Encoders: images (n, 3, H, W) to features (n, feature_dim), channels_last."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from ..setting_types import WIDEST, check_fields, fits_memory, whole
from .cpu_convolutions import guard_convolutions
from .own import OwnEncoder, of_class
from .resnet import RESNETS, STANDARD_WIDTH, ResNetEncoder
from .timm_models import TIMM_PREFIX, TimmEncoder, check_name, checkpoint_gradients
from .vit import fix_positions, freeze_patch_projection
from .weights import load_weights


@dataclass(frozen=True)
class BackboneConfig:
    """Which encoder to build.

    Attributes:
        name: resnet18, resnet34, resnet50, `timm/<name>` for any model of timm, or `package.module.Class`, a class of
            torch.nn.Module that is imported.
        stem: `standard` (7×7 stride 2, then max-pool) or `small` (3×3 stride 1, no pooling) for images of
            about 32 to 64 pixels. ResNets only.
        width: channels of the first stage of a ResNet; 64 is the published network.
        size: side of the images in pixels, for the models of timm that are built for one (ViT, Swin and others), and
            at which the features of timm's and of own modules are measured; None: timm's. `amcl-fast pretrain` sets
            it to data.size. ResNets take any size, and no setting of it.
        arguments: further arguments of the constructor of timm's models or of the class, by name.
        weights: file with the weights at the start, see `amcl_fast.models.weights.load_weights`; None: random ones.
        gradient_checkpointing: compute activations twice instead of keeping them, where the model offers it.
        drop_path: share of the residual branches that training leaves out, rising from 0 in the first block to this
            one in the last; None: as timm builds the model. timm's models only.
        positions: `learned` as timm builds them, or `fixed`: sines and cosines of row and column that are not trained
            (MoCo v3, MAE). timm's ViTs only.
        freeze_patch_projection: leave the random projection of the patches as it is at the start (MoCo v3, Section
            4.2). timm's ViTs only.

    Raises:
        TypeError, ValueError: a setting of another type, or none of the values that there are.
    """

    name: str = "resnet18"
    stem: Literal["standard", "small"] = "standard"
    width: int = STANDARD_WIDTH
    size: int | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    gradient_checkpointing: bool = False
    drop_path: float | None = None
    positions: Literal["learned", "fixed"] = "learned"
    freeze_patch_projection: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "backbone")

    @property
    def is_own(self) -> bool:
        """Whether the encoder is a class of a user's own, whose import runs code of theirs."""
        return "." in self.name and not self.name.startswith(TIMM_PREFIX)


def build_backbone(config: BackboneConfig | nn.Module) -> nn.Module:
    """The encoder of `config`, or a module of one's own, in channels_last, its width of features as `feature_dim`.

    Raises:
        ValueError: unknown name; a setting that the encoder does not have or cannot take; weights that are not its
            own; or features that are no vectors.
        FileNotFoundError: there is no file of weights.
        ImportError: a timm name without timm.
    """
    if isinstance(config, nn.Module):
        known = isinstance(config, OwnEncoder)
        backbone: nn.Module = config if known else OwnEncoder(config, type(config).__name__, None)
    elif config.name.startswith(TIMM_PREFIX):
        backbone = _of_timm(config)
    elif config.name in RESNETS:
        backbone = _resnet(config)
    elif config.is_own:
        backbone = _of_class(config)
    else:
        raise ValueError(
            f"backbone must be one of {', '.join(RESNETS)}, timm/<name> or package.module.Class, got {config.name!r}"
        )
    if isinstance(backbone, OwnEncoder):
        if not backbone.channels_last:
            return backbone
    else:
        backbone = backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    guard_convolutions(backbone)
    return backbone


def _resnet(config: BackboneConfig) -> nn.Module:
    if config.width < 8 or config.width % 8:
        raise ValueError(f"backbone.width must be a positive multiple of 8, got {config.width}")
    whole("backbone.width", config.width, 8, WIDEST)
    if config.size is not None:
        raise ValueError(
            f"backbone.size must be unset with {config.name}, which takes images of any size, for it is a setting "
            f"of timm's models, got {config.size}"
        )
    _refuse(config, "arguments", "gradient_checkpointing", "drop_path", "positions", "freeze_patch_projection")
    block, layers = RESNETS[config.name]
    with fits_memory(**{"backbone.width": config.width}):
        backbone = ResNetEncoder(block, layers, config.stem, config.width)
    if config.weights is not None:
        load_weights(backbone, config.weights, config.name, ["fc"])
    return backbone


def _of_timm(config: BackboneConfig) -> nn.Module:
    name = config.name.removeprefix(TIMM_PREFIX)
    check_name(name)
    _check_no_resnet(config)
    backbone = TimmEncoder(name, config.size, config.arguments, config.drop_path)
    model: Any = backbone.model
    if config.gradient_checkpointing:
        checkpoint_gradients(model, config.name)
    if config.weights is not None:
        classifier = model.pretrained_cfg.get("classifier") or ()
        load_weights(model, config.weights, config.name, [classifier] if isinstance(classifier, str) else classifier)
    if config.positions == "fixed":
        fix_positions(model, config.name)
    if config.freeze_patch_projection:
        freeze_patch_projection(model, config.name, initialise=config.weights is None)
    return backbone


def _of_class(config: BackboneConfig) -> nn.Module:
    _check_no_resnet(config)
    _refuse(config, "drop_path", "positions", "freeze_patch_projection")
    backbone = OwnEncoder(of_class(config.name, config.arguments), config.name, config.size)
    if config.gradient_checkpointing:
        checkpoint_gradients(backbone.model, config.name)
    if config.weights is not None:
        load_weights(backbone.model, config.weights, config.name)
    return backbone


def _check_no_resnet(config: BackboneConfig) -> None:
    if config.stem != "standard" or config.width != STANDARD_WIDTH:
        raise ValueError(
            f"backbone.stem and backbone.width must be standard and {STANDARD_WIDTH} with {config.name}, for they "
            f"are settings of ResNets, got {config.stem} and {config.width}"
        )


def _refuse(config: BackboneConfig, *settings: str) -> None:
    default = BackboneConfig()
    for name in settings:
        value = getattr(config, name)
        if value != getattr(default, name):
            raise ValueError(
                f"backbone.{name} must be {_shown(getattr(default, name))} with {config.name}, for it is a setting of "
                f"timm's models, got {value}"
            )


def _shown(value: Any) -> str:
    return "unset" if value is None or value == {} else str(value).lower()

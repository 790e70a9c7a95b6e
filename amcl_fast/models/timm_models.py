"""timm's models without classifier."""

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..extras import extras_named
from ..setting_types import written
from .features import INSIDE, feature_dim, unfit

TIMM_PREFIX = "timm/"
_LARGEST_SIZE = 2048  # pixels; a file from elsewhere may say anything
# What the constructor is given by others: arguments of it, and what to say instead.
_TAKEN = {
    "img_size": "backbone.size, which is data.size",
    "drop_path_rate": "backbone.drop_path",
    **dict.fromkeys(("pretrained", "pretrained_cfg", "pretrained_cfg_overlay"), "backbone.weights"),
    **dict.fromkeys(("checkpoint_path", "cache_dir"), "backbone.weights"),
    **dict.fromkeys(("num_classes", "features_only", "model_name"), "the encoder, which has no classifier"),
}


class TimmEncoder(nn.Module):
    """A model of timm without its classifier.

    Args:
        name: timm's.
        size: side of the images; None: timm's.
        arguments: of timm's constructor.
        drop_path: share of the residual branches that training leaves out; None: timm's.

    Attributes:
        feature_dim: width of the features, as a forward pass gives it: timm's `num_features` is that of a layer
            before in some families (MobileNetV3, GhostNet, LCNet, EfficientViT, HGNet).
        takes_size: whether the model is built for the size that was given.
    """

    def __init__(self, name: str, size: int | None, arguments: dict[str, Any], drop_path: float | None = None) -> None:
        super().__init__()
        _check(size, arguments, drop_path)
        given = dict(arguments) if drop_path is None else {**arguments, "drop_path_rate": drop_path}
        self.model, self.takes_size = _create(name, size, given)
        if drop_path and not any(getattr(module, "drop_prob", None) for module in self.model.modules()):
            raise ValueError(f"backbone.drop_path must be unset with {TIMM_PREFIX}{name}, which does not apply it")
        self.feature_dim = feature_dim(self.model, f"{TIMM_PREFIX}{name}", size or _own_size(self.model))

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def checkpoint_gradients(model: nn.Module, name: str) -> None:
    """Have a model compute its activations twice instead of keeping them, by timm's `set_grad_checkpointing`.

    Raises:
        ValueError: it has none, or it normalises over the batch, whose running statistics would count batches twice.
    """
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise ValueError(
            f"backbone.gradient_checkpointing must be false with {name}: its BatchNorm would count every batch twice"
        )
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AssertionError, AttributeError, NotImplementedError, TypeError) as error:
        raise ValueError(
            f"backbone.gradient_checkpointing must be false with {name}, which does not offer it"
        ) from error


def check_name(name: str) -> None:
    """Raise ValueError if timm has no model of this name, and ImportError where timm is missing."""
    with extras_named(f"backbone {TIMM_PREFIX}{name}"):
        import timm
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('.')[0]}*")[:8])
        raise ValueError(f"backbone must be a model of timm, got {name!r}{f'; close to it: {close}' if close else ''}")


def _check(size: int | None, arguments: dict[str, Any], drop_path: float | None) -> None:
    if size is not None and not 1 <= size <= _LARGEST_SIZE:
        raise ValueError(f"backbone.size must be between 1 and {_LARGEST_SIZE}, got {size}")
    for argument in arguments.keys() & _TAKEN.keys():
        raise ValueError(f"backbone.arguments must leave {argument} to {_TAKEN[argument]}, got {arguments[argument]!r}")
    if drop_path is not None and not 0 <= drop_path < 1:
        raise ValueError(f"backbone.drop_path must be at least 0 and below 1, got {drop_path}")


def _create(name: str, size: int | None, arguments: dict[str, Any]) -> tuple[nn.Module, bool]:
    """timm's model for images of `size`, and whether it is built for one."""
    import timm

    state = torch.get_rng_state()
    sized = size is not None
    while True:
        given = {**arguments, "img_size": size} if sized else arguments
        try:
            return timm.create_model(name, pretrained=False, num_classes=0, **given), sized
        except INSIDE as error:
            unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if unknown and unknown[1] in arguments:
                raise ValueError(_unknown(name, unknown[1])) from error
            if not sized or not isinstance(error, TypeError) or "img_size" not in str(error):
                own = {key: value for key, value in arguments.items() if key not in _TAKEN}
                told = f" with backbone.arguments {written(own)}" if own else ""
                raise unfit(f"{TIMM_PREFIX}{name}{told}", size, error) from error
        torch.set_rng_state(state)
        sized = False


def _unknown(name: str, argument: str) -> str:
    if argument == "drop_path_rate":
        return f"backbone.drop_path must be unset with {TIMM_PREFIX}{name}, which has no {argument}"
    return f"backbone.arguments must be arguments of {TIMM_PREFIX}{name}, got {argument}"


def _own_size(model: Any) -> int:
    return int(model.pretrained_cfg.get("input_size", (3, 224, 224))[-1])

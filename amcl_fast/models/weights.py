"""Weights of an encoder from a local file."""

import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..extras import extras_named
from .features import INSIDE, in_a_line

_WRAPPERS = ("state_dict", "model")
_DISTRIBUTED = "module."


def load_weights(model: nn.Module, path: str, name: str, classifiers: Sequence[str] = ()) -> None:
    """Load weights that have the names of `model`'s, strictly but for a classifier, which is left out.

    timm's models take weights of other image and patch sizes where timm resamples them.

    Args:
        model: encoder without classifier.
        path: .safetensors, or a file of torch.save with tensors by name, alone or under `state_dict` or `model`. It
            is read as data.
        name: of the encoder, for errors.
        classifiers: prefixes of the names of a classifier's weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds something else, or its names or shapes are not the encoder's.
    """
    if not os.path.isfile(path):
        what = "is none" if os.path.exists(path) else "does not exist"
        raise FileNotFoundError(f"backbone.weights must be a file, got {path}, which {what}")
    held = _read(path)
    for key, value in held.items():
        if not value.isfinite().all():
            raise ValueError(f"backbone.weights must be finite, got {path}, whose {key} is not")
    weights = _resampled(model, held, path)
    own = model.state_dict()
    weights = {
        key: value
        for key, value in weights.items()
        if key in own or not key.startswith(tuple(f"{prefix}." for prefix in classifiers))
    }
    wrong = [
        *(_named([key for key in own if key not in weights], "lacks {}")),
        *(_named([key for key in weights if key not in own], "has {}, which that has not")),
        *(
            f"has {key} of shape {tuple(value.shape)} and not {tuple(own[key].shape)}"
            for key, value in weights.items()
            if key in own and value.shape != own[key].shape
        ),
    ]
    if wrong:
        more = f", and {len(wrong) - 2} more differ" if len(wrong) > 2 else ""
        raise ValueError(f"backbone.weights must be those of {name}, got {path}, which {'; '.join(wrong[:2])}{more}")
    model.load_state_dict(weights)


def _read(path: str) -> dict[str, Tensor]:
    if path.endswith(".safetensors"):
        with extras_named(path):
            from safetensors import SafetensorError
            from safetensors.torch import load_file
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file, or is damaged: {in_a_line(error)}") from error
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch's are many, with advice to load the file unsafely
        raise ValueError(
            f"{path} is refused: it is damaged, or holds more than tensors and plain values, which could run code when "
            "it is read; save the state_dict of the model alone"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content or not all(isinstance(item, Tensor) for item in content.values()):
        raise ValueError(f"{path} holds no weights: it must hold tensors by name, alone or under state_dict or model")
    for key, value in content.items():
        if value.layout is not torch.strided or value.is_quantized or value.is_nested or value.is_meta:
            raise ValueError(f"{path} holds no weights of an encoder: {key} is sparse, nested, quantised or empty")
    return {str(key).removeprefix(_DISTRIBUTED): value for key, value in content.items()}


def _resampled(model: nn.Module, weights: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    """As timm itself changes weights of other sizes and of earlier names."""
    home = sys.modules[type(model).__module__]
    change = getattr(home, "checkpoint_filter_fn", None) if home.__name__.startswith("timm.") else None
    if change is None:
        return weights
    try:
        return change(weights, model)
    except INSIDE as error:
        raise ValueError(
            f"{path} holds weights that timm cannot bring into the model's form: {in_a_line(error)}"
        ) from error


def _named(keys: list[str], told: str) -> list[str]:
    if not keys:
        return []
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return [told.format(", ".join(keys[:3]) + more)]

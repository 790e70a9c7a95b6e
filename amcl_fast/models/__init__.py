"""Encoders, heads, and MoCo's momentum encoder and queue.

Importing this package needs no torchvision: names are imported when they are first used, and only encoders need it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..extras import extras_named

if TYPE_CHECKING:
    from .backbones import BackboneConfig, build_backbone
    from .decoder import DecoderConfig
    from .heads import MultiHeadPredictor, MultiHeadProjector, ProjectorConfig
    from .momentum import KeyQueue, MomentumEncoder

__all__ = [
    "BackboneConfig",
    "DecoderConfig",
    "KeyQueue",
    "MomentumEncoder",
    "MultiHeadPredictor",
    "MultiHeadProjector",
    "ProjectorConfig",
    "build_backbone",
]

_HOMES = {
    "BackboneConfig": "backbones",
    "DecoderConfig": "decoder",
    "KeyQueue": "momentum",
    "MomentumEncoder": "momentum",
    "MultiHeadPredictor": "heads",
    "MultiHeadProjector": "heads",
    "ProjectorConfig": "heads",
    "build_backbone": "backbones",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with extras_named(__name__):
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

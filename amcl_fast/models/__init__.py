"""Encoders, heads, and MoCo's momentum encoder and queue."""

from .backbones import BackboneConfig, build_backbone
from .heads import MultiHeadPredictor, MultiHeadProjector, ProjectorConfig
from .momentum import KeyQueue, MomentumEncoder

__all__ = [
    "BackboneConfig",
    "KeyQueue",
    "MomentumEncoder",
    "MultiHeadPredictor",
    "MultiHeadProjector",
    "ProjectorConfig",
    "build_backbone",
]

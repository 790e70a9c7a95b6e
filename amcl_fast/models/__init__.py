"""Encoders, heads, and MoCo's momentum encoder and queue."""

from ..extras import extras_named

with extras_named("amcl_fast.models"):
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

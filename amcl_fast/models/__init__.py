"""Encoders and projection heads."""

from .backbones import BackboneConfig, build_backbone
from .heads import MultiHeadProjector, ProjectorConfig

__all__ = ["BackboneConfig", "MultiHeadProjector", "ProjectorConfig", "build_backbone"]

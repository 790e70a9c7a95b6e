"""Temperatures that are no constant: AMCL's, CLIP's, and one per anchor of a given perplexity, which stays apart."""

from .adaptive import PRECISIONS as PRECISIONS
from .adaptive import SCORES as SCORES
from .adaptive import AdaptiveTemperature, cosine_temperature
from .bounds import LARGEST_FLOAT32 as LARGEST_FLOAT32
from .bounds import SMALLEST_TAU as SMALLEST_TAU
from .learned import LearnedTemperature
from .perplexity import PerplexityTemperature

__all__ = ["AdaptiveTemperature", "LearnedTemperature", "PerplexityTemperature", "Temperature", "cosine_temperature"]

Temperature = float | AdaptiveTemperature | LearnedTemperature | PerplexityTemperature
"""What a loss over negatives takes."""

"""amcl_fast: Adaptive Multi-head Contrastive Learning, exact, small in memory and fast.

The losses import neither a trainer nor a data pipeline; those live in `amcl_fast.methods` and `amcl_fast.data`.
"""

from .diagnosis import Finding, diagnose
from .losses import BarlowTwinsLoss, MoCoLoss, SimCLRLoss, SimSiamLoss
from .temperature import AdaptiveTemperature

__version__ = "0.1.0"
__all__ = [
    "AdaptiveTemperature",
    "BarlowTwinsLoss",
    "Finding",
    "MoCoLoss",
    "SimCLRLoss",
    "SimSiamLoss",
    "__version__",
    "diagnose",
]

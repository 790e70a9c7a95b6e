"""One LightningModule per framework; baseline and AMCL differ by the temperature of the criterion only."""

from ..extras import extras_named

with extras_named("amcl_fast.methods"):
    from .barlow_twins import BarlowTwins
    from .base import Method
    from .can import CAN, LossWeights
    from .moco import MoCo
    from .pairs import Pairs
    from .simclr import SimCLR
    from .simsiam import SimSiam

__all__ = ["CAN", "BarlowTwins", "LossWeights", "Method", "MoCo", "Pairs", "SimCLR", "SimSiam"]

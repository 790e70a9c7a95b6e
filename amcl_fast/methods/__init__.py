"""One LightningModule per framework; baseline and AMCL differ by the temperature of the criterion only."""

from .base import Method
from .simclr import SimCLR

__all__ = ["Method", "SimCLR"]

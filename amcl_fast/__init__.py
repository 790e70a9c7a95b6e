"""amcl_fast: Adaptive Multi-head Contrastive Learning, exact, small in memory and fast.

The losses import neither a trainer nor a data pipeline; those live in `amcl_fast.methods` and `amcl_fast.data`.
Public names are imported when they are first used, so that the command line can answer before torch is there.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .diagnosis import Finding, diagnose
    from .losses import BarlowTwinsLoss, MoCoLoss, SimCLRLoss, SimSiamLoss
    from .pretraining.from_python import pretrain as pretrain
    from .temperature import AdaptiveTemperature, LearnedTemperature, PerplexityTemperature

__version__ = "0.1.0"
__all__ = [
    "AdaptiveTemperature",
    "BarlowTwinsLoss",
    "Finding",
    "LearnedTemperature",
    "MoCoLoss",
    "PerplexityTemperature",
    "SimCLRLoss",
    "SimSiamLoss",
    "__version__",
    "diagnose",
]  # not `pretrain`: `import *` works where there is no trainer

_HOMES = {
    "AdaptiveTemperature": "temperature",
    "BarlowTwinsLoss": "losses",
    "Finding": "diagnosis",
    "LearnedTemperature": "temperature",
    "MoCoLoss": "losses",
    "PerplexityTemperature": "temperature",
    "SimCLRLoss": "losses",
    "SimSiamLoss": "losses",
    "diagnose": "diagnosis",
    "pretrain": "pretraining.from_python",
}
_MODULES = ("capabilities", "diagnosis", "distributed", "losses", "ops", "reference", "rows", "temperature")
"""Modules that are there without an import of their own."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_MODULES})

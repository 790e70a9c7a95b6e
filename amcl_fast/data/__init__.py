"""Images in, augmented views out, through one DALI graph for the CPU and the GPU.

Names are imported when they are first used: small processes import what lies in here, and some names need DALI and
Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from amcl_fast.extras import extras_named

if TYPE_CHECKING:
    from amcl_fast.data.augment import Augmentation
    from amcl_fast.data.loader.contrastive import ContrastiveLoader
    from amcl_fast.data.loader.evaluation import EvaluationLoader
    from amcl_fast.data.module import ContrastiveDataModule
    from amcl_fast.data.views import ViewGroup

__all__ = ["Augmentation", "ContrastiveDataModule", "ContrastiveLoader", "EvaluationLoader", "ViewGroup"]

_HOMES = {
    "Augmentation": "augment",
    "ContrastiveDataModule": "module",
    "ContrastiveLoader": "loader.contrastive",
    "EvaluationLoader": "loader.evaluation",
    "ViewGroup": "views",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with extras_named(f"{__name__}.{name}"):
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

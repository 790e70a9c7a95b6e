"""Images in, augmented views out, through one DALI graph for the CPU and the GPU.

Importing this package needs neither DALI nor Lightning; the names that do are imported when they are first
used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from amcl_fast.data.augment import Augmentation
from amcl_fast.data.views import ViewGroup
from amcl_fast.extras import extras_named

if TYPE_CHECKING:
    from amcl_fast.data.loader.contrastive import ContrastiveLoader
    from amcl_fast.data.loader.evaluation import EvaluationLoader
    from amcl_fast.data.module import ContrastiveDataModule

__all__ = ["Augmentation", "ContrastiveDataModule", "ContrastiveLoader", "EvaluationLoader", "ViewGroup"]

_HOMES = {
    "ContrastiveDataModule": "module",
    "ContrastiveLoader": "loader.contrastive",
    "EvaluationLoader": "loader.evaluation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with extras_named(f"{__name__}.{name}"):
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

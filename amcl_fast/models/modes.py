"""Modules in another mode for a while, and the type of their weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def in_mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Training or evaluation mode inside the block; afterwards every submodule is in the mode it was in."""
    modes = {submodule: submodule.training for submodule in module.modules()}
    module.train(training)
    try:
        yield
    finally:
        for submodule, mode in modes.items():
            submodule.training = mode


@contextmanager
def untracked(module: nn.Module) -> Iterator[None]:
    """Leave the running statistics of batch normalisation as they are."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def floating_dtype(module: nn.Module) -> torch.dtype | None:
    """Type of the module's weights, which its inputs must have; None if it has none of floating point."""
    return next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), None)

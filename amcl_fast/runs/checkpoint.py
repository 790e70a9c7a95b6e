"""Checkpoints are read as data: tensors and plain values, never code."""

from pathlib import Path
from typing import Any

import torch

from .settings import check_plain

EXACT_RESUME = "exact_resume"
"""Under which a checkpoint holds what a run needs to go on exactly and Lightning leaves out."""


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a run without executing anything that it holds.

    A checkpoint is a pickle, and a pickle can call any function while it is read. Only tensors and plain types
    are accepted here, which is all that a checkpoint of this package holds.

    Args:
        path: a .ckpt file. Its tensors stay on the disk until they are used.

    Returns:
        The checkpoint, tensors on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds anything else, is damaged, is no checkpoint of this package, or its settings are
            larger than those of a run.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError:
        raise
    except Exception as error:
        # torch raises UnpicklingError, RuntimeError, EOFError and more, with advice to load the file unsafely.
        raise ValueError(
            f"{path} is refused: it is damaged, or holds more than tensors and plain values, which could run code "
            "when it is read; a checkpoint of amcl-fast holds nothing else"
        ) from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "global_step"} <= checkpoint.keys():
        raise ValueError(f"{path} is no checkpoint of amcl-fast: it lacks state_dict and global_step")
    for name in ("settings", "hyper_parameters"):
        check_plain(checkpoint.get(name), f"{path}, {name}")
    return checkpoint

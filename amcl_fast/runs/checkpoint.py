"""Checkpoints are read as data: tensors and plain values, never code."""

import zipfile
from pathlib import Path
from typing import Any, TypedDict

import torch

from .reading import DamagedError, misfit, opened
from .settings import check_plain

EXACT_RESUME = "exact_resume"
"""Under which a checkpoint holds what a run needs to go on exactly and Lightning leaves out."""


_MOST_BYTES = 1 << 50
"""It stays on the disk until it is used."""


class _Checkpoint(TypedDict, total=False):
    state_dict: dict[str, Any]
    global_step: int
    settings: dict[str, Any] | None
    hyper_parameters: dict[str, Any] | None
    exact_resume: dict[str, Any]
    optimizer_states: list[Any]
    lr_schedulers: list[Any]
    loops: dict[str, Any]
    callbacks: dict[str, Any]


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
        DamagedError: the file holds anything else, is damaged, is no checkpoint of this package, or its settings are
            larger than those of a run.
    """
    try:
        with opened(path, _MOST_BYTES) as file, zipfile.ZipFile(file) as archive:
            # torch packs nothing: what is packed may be a thousand times as large, and is read at once.
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise zipfile.BadZipFile
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, DamagedError):
        raise
    except Exception as error:
        # torch raises UnpicklingError, RuntimeError, EOFError and more, with advice to load the file unsafely.
        raise DamagedError(
            f"{path} is refused: it is damaged, or holds more than tensors and plain values, which could run code "
            "when it is read; a checkpoint of amcl-fast holds nothing else"
        ) from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "global_step"} <= checkpoint.keys():
        raise DamagedError(f"{path} is no checkpoint of amcl-fast: it lacks state_dict and global_step")
    if problem := misfit(checkpoint, _Checkpoint):
        raise DamagedError(f"{path} is no checkpoint of amcl-fast: {problem}")
    for name in ("settings", "hyper_parameters"):
        check_plain(checkpoint.get(name), f"{path}, {name}")
    return checkpoint

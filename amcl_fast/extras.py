"""Packages that only an extra brings: which one, told in one line where one is missing."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager

EXTRAS = {
    "lightning": "train",
    "jsonargparse": "train",
    "yaml": "train",
    "matplotlib": "train",
    "tensorboard": "train",
    "torchvision": "train",
    "PIL": "train",
    "tqdm": "train",
    "nvidia.dali": "train",
    "timm": "timm",
    "safetensors": "export",
    "onnx": "export",
    "onnxscript": "export",
    "huggingface_hub": "hub",
    "lightly": "bench",
    "pytest_benchmark": "bench",
}
"""Module to the extra of amcl-fast with which it comes."""

_STRIPPED = "needs docstrings, of which NVIDIA DALI makes its own: python -O at the most, got -OO"

_NAMES = {"yaml": "PyYAML", "PIL": "Pillow", "nvidia.dali": "NVIDIA DALI"}


def missing(*modules: str) -> list[str]:
    """Those of `modules` that cannot be found; none is imported."""
    return [module for module in modules if not _found(module)]


def require(what: str, *modules: str) -> None:
    """Check that every module is there.

    Args:
        what: that needs them, for the message.
        modules: keys of `EXTRAS`.

    Raises:
        ImportError: some are missing; one line that names all of them and the extras that bring them. Or NVIDIA DALI
            is among them, and Python has no docstrings (-OO).
    """
    if lacking := missing(*modules):
        raise ImportError(_line(what, lacking))
    if "nvidia.dali" in modules and sys.flags.optimize > 1:
        raise ImportError(f"{what} {_STRIPPED}")


@contextmanager
def extras_named(what: str) -> Iterator[None]:
    """Within the block, an import that fails for want of an extra says which one; `what` is what needs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = next((m for m in EXTRAS if error.name and f"{error.name}.".startswith(f"{m}.")), None)
        if error.name == "nvidia":  # which other packages share
            module = "nvidia.dali"
        if module is None:
            raise
        raise ImportError(_line(what, [module]), name=error.name) from error
    except TypeError as error:
        if sys.flags.optimize < 2:
            raise
        raise ImportError(f"{what} {_STRIPPED}") from error


def _line(what: str, modules: list[str]) -> str:
    extras = ",".join(dict.fromkeys(EXTRAS[module] for module in modules))
    line = f"{what} needs {', '.join(_NAMES.get(module, module) for module in modules)}"
    if "nvidia.dali" in modules and sys.platform != "linux":
        return f"{line}; of NVIDIA DALI there is none for {sys.platform}, only for Linux"
    of_cuda_12 = "; train-cuda12 in place of train beside CUDA 12" if "nvidia.dali" in modules else ""
    return f"{line}: pip install 'amcl-fast[{extras}]'{of_cuda_12}"


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # its parent is missing; or it is made up, without a spec
        return sys.modules.get(module) is not None

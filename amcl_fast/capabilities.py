"""What this machine can run: the backends of the losses, DALI and apex, each with the reason.

The operators and `amcl-fast doctor` ask here, so both give the same answer. Importing this module imports
nothing but torch; each answer imports what it asks about, once per process.
"""

import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from .extras import extras_named

MIN_CAPABILITY = (8, 0)
# setup.py leaves the reason here when it cannot build the native module.
_NATIVE_NOTE = Path(__file__).with_name("_native_missing.txt")


@dataclass(frozen=True)
class Status:
    """Whether something can be used.

    Attributes:
        available: it can.
        reason: what was found, or why it cannot; one line.
    """

    available: bool
    reason: str


@cache
def native_status() -> Status:
    """Return whether `amcl_fast._native`, the C++ backend for the CPU, loads."""
    try:
        module = importlib.import_module("amcl_fast._native")
    except ModuleNotFoundError:
        if _NATIVE_NOTE.exists():
            return Status(False, f"built without: {_NATIVE_NOTE.read_text('utf-8').strip()}")
        return Status(False, "not built for this Python: install the package (pip install -e .)")
    except ImportError as error:
        return Status(False, f"does not load: {_first_line(error)}")
    return Status(True, Path(module.__file__ or "").name)


@cache
def triton_status() -> Status:
    """Return whether the Triton backend runs: on a GPU of capability 8.0 or more, or in its interpreter."""
    try:
        triton = importlib.import_module("triton")
    except ImportError as error:
        return Status(False, f"no Triton: {_first_line(error)}")
    if triton.knobs.runtime.interpret:
        return Status(True, "interpreter on the CPU (TRITON_INTERPRET is set): for tests, slow")
    problem = _gpu_problem()
    if problem:
        return Status(False, f"{problem} (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly)")
    capability = torch.cuda.get_device_capability()
    if capability < MIN_CAPABILITY:
        return Status(
            False,
            f"{torch.cuda.get_device_name()} has compute capability {_dotted(capability)}, "
            f"the kernels need {_dotted(MIN_CAPABILITY)} or more",
        )
    return Status(True, f"{torch.cuda.get_device_name()}, compute capability {_dotted(capability)}")


@cache
def dali_status(device: Literal["cpu", "gpu"]) -> Status:
    """Return whether NVIDIA DALI runs with its operators on `device`.

    Raises:
        ValueError: a device other than "cpu" and "gpu".
    """
    if device not in ("cpu", "gpu"):
        raise ValueError(f'device must be "cpu" or "gpu", got {device!r}')
    try:
        with extras_named("the data pipeline"):
            dali = importlib.import_module("nvidia.dali")
    except (ImportError, OSError, RuntimeError) as error:
        return Status(False, f"DALI does not load: {_first_line(error)}")
    problem = _gpu_problem() if device == "gpu" else None
    return Status(problem is None, problem or f"DALI {dali.__version__}")


@cache
def apex_status() -> Status:
    """Return whether NVIDIA apex's FusedSGD and FusedLAMB run.

    PyPI's "apex" is an unrelated package, and NVIDIA's may be built without its CUDA extensions, so importing
    `apex` proves nothing. What counts is its `optimizers`, the extension `amp_C`, and one step of each
    optimiser on the GPU.
    """
    spec = importlib.util.find_spec("apex")  # finds the package without running its code
    if spec is None:
        return Status(False, "not installed (optional; torch's fused optimisers are used)")
    folders = list(spec.submodule_search_locations or [])
    if not any(Path(folder, "optimizers").is_dir() for folder in folders):
        place = folders[0] if folders else spec.origin
        return Status(False, f"the package `apex` at {place} is not NVIDIA's: it has no apex.optimizers")
    problem = _gpu_problem()
    if problem:
        return Status(False, f"NVIDIA apex at {folders[0]}, but {problem}")
    try:
        importlib.import_module("amp_C")
    except (ImportError, OSError) as error:
        return Status(False, f"NVIDIA apex at {folders[0]} without its CUDA extensions: {_first_line(error)}")
    try:
        optimizers = importlib.import_module("apex.optimizers")
        for optimizer in (optimizers.FusedSGD, optimizers.FusedLAMB):
            _try_step(optimizer)
    # Whatever a foreign build raises, its optimisers do not work here.
    except Exception as error:
        return Status(False, f"NVIDIA apex at {folders[0]}, but its optimisers fail: {_first_line(error)}")
    return Status(True, f"FusedSGD and FusedLAMB of {folders[0]}")


def _try_step(optimizer: type[torch.optim.Optimizer]) -> None:
    weight = nn.Parameter(torch.ones(2, device=_fused_device()))
    weight.grad = torch.ones_like(weight)
    optimizer([weight], lr=0.1).step()  # type: ignore[call-arg]
    if not bool((weight < 1).all()):
        raise RuntimeError(f"{optimizer.__name__} left the weights as they were")


def _fused_device() -> torch.device:
    return torch.device("cuda")


def _gpu_problem() -> str | None:
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    return None


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

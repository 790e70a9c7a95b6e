"""What the measurements of `benchmarks.gpu` ask of a GPU, all of it, so that one module is what a test replaces.

Times are milliseconds, steps are callables of no arguments that issue work.
"""

import contextlib
import ctypes
import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ..cases import Case
from ..measure import operators

Step = Callable[[], object]

# Of tensors, and of our implementation.
KIND, BACKEND = "cuda", "triton"
_STEPS = 10


def problem() -> str | None:
    """Why nothing can be measured here; None if it can."""
    if torch.cuda.is_available():
        return None
    return "benchmarks.gpu needs an NVIDIA GPU, and torch sees none: torch.cuda.is_available() is False"


def capability() -> list[int]:
    """Major and minor number of what the GPU can do."""
    return list(torch.cuda.get_device_capability())


def sized(case: Case) -> Case:
    """The case as it is measured; a GPU takes every case as it is."""
    return case


def settle() -> None:
    """Wait for the GPU; raises what went wrong on it."""
    torch.cuda.synchronize()


def release() -> None:
    """Give back memory that nothing uses."""
    torch.cuda.empty_cache()


def kernels(step: Step) -> list[dict[str, Any]]:
    """`name`, `calls` and `us` of each kernel of a step by torch.profiler, the slowest first."""
    for _ in range(2):
        step()
    settle()
    kinds = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds) as profile:
        for _ in range(_STEPS):
            step()
        settle()
    found = [
        {"name": event.key, "calls": event.count / _STEPS, "us": event.self_device_time_total / _STEPS}
        for event in profile.key_averages()
        if event.device_type == torch.autograd.DeviceType.CUDA and event.self_device_time_total
    ]
    return sorted(found, key=lambda kernel: -kernel["us"])


def wall(step: Step, seconds: float = 0.3, group: int | None = None) -> float:
    """A step by the clock: the median over groups of steps, issued one after the other between two waits.

    Args:
        step: to be measured.
        seconds: measure for at least so long, and three groups.
        group: steps; None: as many as take a tenth of a second, ten at most.
    """
    started = time.perf_counter()
    step()
    settle()
    group = group or max(1, min(_STEPS, int(0.1 / (time.perf_counter() - started))))
    times: list[float] = []
    stop = time.monotonic() + seconds
    while len(times) < 3 or time.monotonic() < stop:
        settle()
        started = time.perf_counter()
        for _ in range(group):
            step()
        settle()
        times.append((time.perf_counter() - started) * 1e3 / group)
    return median(times)


def captured(step: Step) -> Step:
    """The step as a CUDA graph: what replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def graphed(module: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    """The module as two CUDA graphs, forward and backward, for inputs like these; the module itself is changed."""
    return torch.cuda.make_graphed_callables(module, inputs)  # type: ignore[return-value]


def compiled_by_torch(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function by torch.compile."""
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)


def peak_gib(step: Step) -> float:
    """Most memory that is taken during a step, what stood before it included."""
    torch.cuda.reset_peak_memory_stats()
    step()
    settle()
    return torch.cuda.max_memory_allocated() / 2**30


@contextlib.contextmanager
def compiled() -> Iterator[dict[str, dict[str, int]]]:
    """What the kernels use that this process loads meanwhile, by name; the dictionary fills as they are loaded.

    `registers` and bytes of `stack` a thread, `warps` and bytes of `shared` memory a block.
    """
    from triton import knobs

    found: dict[str, dict[str, int]] = {}

    def loaded(module: int, function: int, name: str, files: dict[str, str], *_: Any) -> None:
        about = json.loads(Path(next(path for file, path in files.items() if file.endswith(".json"))).read_text())
        found[name] = {
            "registers": _attribute(_REGISTERS, function), "stack": _attribute(_LOCAL_BYTES, function),
            "warps": about["num_warps"], "shared": about["shared"],
        }  # fmt: skip

    # To patch what launches kernels instead would change how they are launched.
    hooks = knobs.runtime.kernel_load_end_hook
    hooks.add(loaded)
    try:
        yield found
    finally:
        hooks.remove(loaded)


# Of cuda.h's CUfunction_attribute.
_LOCAL_BYTES, _REGISTERS = 3, 4


def _attribute(which: int, function: int) -> int:
    value = ctypes.c_int()
    if code := _libcuda().cuFuncGetAttribute(ctypes.byref(value), which, ctypes.c_void_p(function)):
        raise RuntimeError(f"cuFuncGetAttribute returned {code}")
    return value.value


@functools.cache
def _libcuda() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def ceiling_size() -> int:
    """Side of the matrices on which the device's ceilings are measured."""
    return 8192


def training_size() -> tuple[int, int]:
    """Images a batch and their side of the training step."""
    return 256, 224


def encoder(width: int) -> nn.Module:
    """A ResNet-50 with `width` outputs.

    Raises:
        ImportError: no torchvision.
    """
    from torchvision.models import resnet50

    return resnet50(num_classes=width).to(KIND, memory_format=torch.channels_last)


@functools.cache
def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a large copy."""
    return operators.copy_bandwidth()

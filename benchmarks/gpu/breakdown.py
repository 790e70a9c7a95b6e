"""Where an operator's time on a GPU goes: kernel by kernel, and between the kernels.

A row: `case`, `run` (`ours` or a peer), `kernels` (`name`, `calls` and `us` a step, the slowest first), `busy_ms` (the
sum of these), `wall_ms` (a step by the clock, steps issued one after the other), `graph_ms` (the same step replayed as
a CUDA graph, null where it cannot be captured: `graph_problem` says why).
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cases import Case, named
from ..peers import implementation
from ..step import step_of
from . import device
from .checks import EqualRows
from .device import Step
from .workers import told

CASES = (
    "SimCLR, N = 4096, one table",
    "MoCo, N = 256, queue 65,536",
    "SimCLR, N = 4096, softmax over all, one table",
    "NT-Xent, N = 4096, one table",
    "Barlow Twins, d = 8192, N = 1024",
    "SimSiam, d = 2048, N = 4096",
)
# With tables of their own, as they were measured before there was one table.
_BEFORE = ("SimCLR, N = 4096", "SimCLR, N = 4096, softmax over all", "NT-Xent, N = 4096")
# A temperature per anchor, beside one for all.
_PER_ANCHOR = (
    "SimCLR, N = 4096, constant τ, one table",
    "SimCLR, N = 4096, perplexity, one table",
    "SimCLR, N = 4096, perplexity over all, one table",
)
_EQUAL = ("SimCLR, N = 4096", "MoCo, N = 256, queue 65,536")


def steps() -> dict[tuple[str, str], Callable[[], Step]]:
    """By (case, run) what makes the step of everything that is broken down."""
    found: dict[tuple[str, str], Callable[[], Step]] = {}
    for run, names in (("ours", CASES + _PER_ANCHOR + _BEFORE), ("dense", CASES)):
        found |= {(name, run): partial(step_of_case, device.sized(named(name)), run) for name in names}
        if run == "ours":
            for name in _EQUAL:
                case = EqualRows(**vars(device.sized(named(name))))
                found[f"{name}, all rows equal", run] = partial(step_of_case, case, run)
    return found


def row(case: str, run: str) -> dict[str, Any]:
    """The row of one of `steps`."""
    return {"case": case, "run": run, **break_down(steps()[case, run]())}


def break_down(step: Step) -> dict[str, Any]:
    """Kernels, wall and graph of a step."""
    kernels = [kernel | {"name": short(kernel["name"])} for kernel in device.kernels(step)]
    found: dict[str, Any] = {"kernels": kernels, "busy_ms": sum(kernel["us"] for kernel in kernels) / 1e3}
    found["wall_ms"] = device.wall(step)
    try:
        return found | {"graph_ms": device.wall(device.captured(step))}
    except Exception as problem:
        return found | {"graph_ms": None, "graph_problem": told(problem)}


def step_of_case(case: Case, run: str) -> Callable[[], tuple[Tensor | None, ...]]:
    """Forward and backward pass of a case by `ours` or a peer."""
    return step_of(implementation(backend(run), case), [case.operands(device.KIND, case.dtype_on("cuda"))])


def backend(run: str) -> str:
    """The name by which `peers.implementation` knows `ours` or a peer."""
    return device.BACKEND if run == "ours" else run


def ceilings() -> dict[str, Callable[[], dict[str, Any]]]:
    """What the device reaches on simple tasks, each a row: `task`, `value`, `unit`."""
    return {name: partial(task, device.ceiling_size()) for name, task in _CEILINGS.items()}


def _product(n: int) -> dict[str, Any]:
    a = torch.randn(n, n, device=device.KIND, dtype=torch.bfloat16)
    return _rate("product, bfloat16", 2 * n**3, lambda: a @ a.mT, "FLOP/s")


def _copy(n: int) -> dict[str, Any]:
    source = torch.empty(16 * n * n, dtype=torch.uint8, device=device.KIND)
    target = torch.empty_like(source)
    return _rate("copy", 2 * source.numel(), lambda: target.copy_(source), "bytes/s")


def _gather(n: int) -> dict[str, Any]:
    table = torch.randn(3 * n, 128, device=device.KIND, dtype=torch.bfloat16)
    index = torch.randint(3 * n, (3 * n, 100), device=device.KIND)
    task = lambda: F.embedding_bag(index, table, mode="sum")  # noqa: E731
    return _rate("gather of rows of 256 bytes, summed", 256 * index.numel(), task, "bytes/s")


def _elementwise(n: int) -> dict[str, Any]:
    x, y = torch.randn(2, n, n, device=device.KIND).unbind()
    return _rate("x += y, float32", 12 * n * n, lambda: x.add_(y), "bytes/s")


def _rate(task: str, amount: float, step: Step, unit: str) -> dict[str, Any]:
    return {"task": task, "value": amount / (device.wall(step) / 1e3), "unit": unit}


_CEILINGS: dict[str, Callable[[int], dict[str, Any]]] = {
    "product": _product, "copy": _copy, "gather": _gather, "elementwise": _elementwise
}  # fmt: skip


def short(kernel: str) -> str:
    """A kernel's name without its template arguments and namespaces."""
    name = re.sub(r"^void |\(anonymous namespace\)::|at::native::|<.*|\(.*", "", kernel)
    return name or kernel[:60]


def line(row: dict[str, Any]) -> str:
    """A row as text: times, and the kernels that take a twentieth of the step or more."""
    graph = row["graph_problem"] if row["graph_ms"] is None else f"{row['graph_ms']:.3f} ms"
    launches = sum(kernel["calls"] for kernel in row["kernels"])
    lines = [
        f"{row['case']}, {row['run']}: busy {row['busy_ms']:.3f} ms, wall {row['wall_ms']:.3f} ms, graph {graph}, "
        f"{launches:.0f} kernels"
    ]
    for kernel in row["kernels"]:
        if kernel["us"] >= 50 * row["busy_ms"]:
            lines.append(f"    {kernel['us']:9.1f} us  {kernel['calls']:5.1f} x  {kernel['name'][:60]}")
    return "\n".join(lines)

"""Where a step's time on a GPU goes: kernel by kernel, and between the kernels.

A row: `case`, `run` (`ours` or a peer), `kernels` (`name`, `calls` and `us` a step, the slowest first), `busy_ms` (the
sum of these), `wall_ms` (a step by the clock, steps issued one after the other), `graph_ms` (the same step replayed as
a CUDA graph, null where it cannot be captured: `graph_problem` says why).

Device time by torch.profiler; medians of the two times.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from amcl_fast import AdaptiveTemperature, MoCoLoss

from .cases import CASES, Case, Operands
from .operators import step_of
from .peers import implementation

Step = Callable[[], object]

_STEPS = 10
_OPERATORS = (
    "SimCLR, N = 4096",
    "MoCo, N = 256, queue 65,536",
    "NT-Xent, N = 4096",
    "SimCLR, N = 4096, softmax over all",
    "Barlow Twins, d = 8192, N = 1024",
    "SimSiam, d = 2048, N = 4096",
)


class EqualRows(Case):
    """A case whose anchors and candidates are all the same row: a collapsed network, or a queue of equal keys."""

    def operands(self, device: str, dtype: torch.dtype, seed: int = 0, *, on_grid: bool = False) -> Operands:
        """As `Case.operands`."""
        tensors = super().operands(device, dtype, seed, on_grid=on_grid)
        row = None if tensors[0] is None else tensors[0].detach()[:, :1]
        for place, table in enumerate(tensors[:2]):
            assert table is not None and row is not None
            tensors[place] = row.expand_as(table).contiguous().requires_grad_(self.gradients[place])
        return tensors


def steps() -> Iterator[tuple[str, str, Callable[[], Step]]]:
    """(case, run, what makes the step) of everything that is broken down, on the current GPU."""
    named = {case.name: case for case in CASES}
    for name in _OPERATORS:
        for run in ("ours", "dense"):
            yield name, run, lambda case=named[name], run=run: step_of_case(case, run)  # type: ignore[misc]
    for name in ("SimCLR, N = 4096", "MoCo, N = 256, queue 65,536"):
        equal = EqualRows(**vars(named[name]))
        yield f"{name}, all rows equal", "ours", lambda case=equal: step_of_case(case, "ours")  # type: ignore[misc]
    whole = named["Whole loss: AMCL-SimCLR, N = 512, InfoNCE"]
    for batch in (256, 512, 4096):
        for negatives, top_k in (("softmax", None), ("topk_softmax", 100)):
            settings = whole.settings | {"negatives": negatives, "top_k": top_k}
            case = replace(whole, rows=2 * batch, settings=settings)
            label = "InfoNCE" if top_k is None else f"InfoNCE over the {top_k} hardest"
            for run in ("ours", "dense") if top_k is None else ("ours",):
                name = f"Whole loss: AMCL-SimCLR, N = {batch}, {label}"
                yield name, run, lambda case=case, run=run: step_of_case(case, run)  # type: ignore[misc]
    yield "Whole loss: AMCL-MoCo, N = 256, queue 65,536", "ours", _moco


def rows() -> Iterator[dict[str, Any]]:
    """A row for each of `steps`; one that fails holds `failed` instead of times."""
    for case, run, make in steps():
        try:
            found = break_down(make())
        except Exception as failure:
            found = {"failed": told(failure)}
        torch.cuda.empty_cache()
        yield {"case": case, "run": run, **found}


def break_down(step: Step, *, times: bool = True) -> dict[str, Any]:
    """Kernels and, with `times`, wall and graph of a step on the current GPU."""
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    kinds = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds) as profile:
        for _ in range(_STEPS):
            step()
        torch.cuda.synchronize()
    kernels = [
        {"name": short(event.key), "calls": event.count / _STEPS, "us": event.self_device_time_total / _STEPS}
        for event in profile.key_averages()
        if event.device_type == torch.autograd.DeviceType.CUDA and event.self_device_time_total
    ]
    kernels.sort(key=lambda kernel: -kernel["us"])
    row: dict[str, Any] = {"kernels": kernels, "busy_ms": sum(kernel["us"] for kernel in kernels) / 1e3}
    if not times:
        return row
    row["wall_ms"] = _wall(step)
    try:
        graph = _captured(step)
    except Exception as problem:
        return row | {"graph_ms": None, "graph_problem": told(problem)}
    return row | {"graph_ms": _wall(graph.replay)}


def training_steps(batch: int = 256, size: int = 224) -> list[dict[str, Any]]:
    """A ResNet-50's step (two views, bfloat16, channels_last, SGD) by the loss at its end, `none` included.

    `none` is the mean of the projections, which costs nothing; `dense` is InfoNCE over all as anyone writes it.
    """
    from torchvision.models import resnet50

    whole = next(case for case in CASES if case.name == "Whole loss: AMCL-SimCLR, N = 512, InfoNCE")
    hard = whole.settings | {"negatives": "topk_softmax", "top_k": 100}
    found = []
    images = torch.randn(2 * batch, 3, size, size, device="cuda").to(memory_format=torch.channels_last)
    for name, run, settings in (
        ("none", "none", whole.settings),
        ("InfoNCE over all", "ours", whole.settings),
        ("InfoNCE over the 100 hardest", "ours", hard),
        ("InfoNCE over all", "dense", whole.settings),
        ("none", "none", whole.settings),
    ):
        torch.manual_seed(0)
        case = replace(whole, rows=2 * batch, settings=settings)
        encoder = resnet50(num_classes=case.heads * case.width).cuda().to(memory_format=torch.channels_last)
        phi = [t for t in case.operands("cuda", torch.float32)[2:] if t is not None]
        optimizer = torch.optim.SGD([*encoder.parameters(), *phi], lr=1e-3, momentum=0.9, fused=True)
        loss_of: Callable[..., Tensor] = (
            (lambda z1, z2, *_: (z1 + z2).float().mean()) if run == "none" else implementation(_backend(run), case)
        )

        def step(
            encoder: torch.nn.Module = encoder,
            loss_of: Callable[..., Tensor] = loss_of,
            optimizer: torch.optim.Optimizer = optimizer,
            phi: list[Tensor] = phi,
            heads: int = case.heads,
        ) -> None:
            with torch.autocast("cuda", dtype=torch.bfloat16):
                z = encoder(images).unflatten(1, (heads, -1))
                loss = loss_of(z[:batch], z[batch:], *phi)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        for _ in range(3):
            step()
        torch.cuda.reset_peak_memory_stats()
        wall = _wall(step)
        peak = torch.cuda.max_memory_allocated() / 2**30
        found.append(
            {"loss": name, "run": run, "wall_ms": wall, "peak_gib": peak, "images_per_second": 1e3 * batch / wall}
        )
    return found


def ceilings() -> dict[str, float]:
    """What the GPU reaches on three simple tasks: products (FLOP/s), copies and gathers of rows in L2 (bytes/s)."""
    n = 8192
    a = torch.randn(n, n, device="cuda", dtype=torch.bfloat16)
    copied = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(copied)
    table = torch.randn(3 * n, 128, device="cuda", dtype=torch.bfloat16)
    index = torch.randint(3 * n, (3 * n, 100), device="cuda")
    return {
        "product_flops": 2 * n**3 / (_wall(lambda: a @ a.mT) / 1e3),
        "copy_bytes": 2 * copied.numel() / (_wall(lambda: target.copy_(copied)) / 1e3),
        "gather_bytes": 256 * index.numel() / (_wall(lambda: F.embedding_bag(index, table, mode="sum")) / 1e3),
    }


def short(kernel: str) -> str:
    """A kernel's name without its template arguments and namespaces."""
    name = re.sub(r"^void |\(anonymous namespace\)::|at::native::|<.*|\(.*", "", kernel)
    return name or kernel[:60]


def told(problem: Exception) -> str:
    """An exception in one line."""
    first = (str(problem).splitlines() or [""])[0]
    return f"{type(problem).__name__}: {first}"[:300]


def table(found: list[dict[str, Any]]) -> str:
    """The rows as text: times, and the kernels that take a twentieth of the step or more."""
    lines = []
    for row in found:
        if "failed" in row:
            lines.append(f"{row['case']}, {row['run']}: FAILED {row['failed']}")
            continue
        graph = row["graph_problem"] if row["graph_ms"] is None else f"{row['graph_ms']:.3f} ms"
        launches = sum(kernel["calls"] for kernel in row["kernels"])
        lines.append(
            f"{row['case']}, {row['run']}: busy {row['busy_ms']:.3f} ms, wall {row['wall_ms']:.3f} ms, graph {graph}, "
            f"{launches:.0f} kernels"
        )
        for kernel in row["kernels"]:
            if kernel["us"] >= 50 * row["busy_ms"]:
                lines.append(f"    {kernel['us']:9.1f} us  {kernel['calls']:5.1f} x  {kernel['name'][:60]}")
    return "\n".join(lines)


def _backend(run: str) -> str:
    return "triton" if run == "ours" else run


def step_of_case(case: Case, run: str) -> Callable[[], tuple[Tensor | None, ...]]:
    """Forward and backward pass of a case by `ours` or a peer, on the current GPU."""
    return step_of(implementation(_backend(run), case), [case.operands("cuda", case.dtype_on("cuda"))])


def _moco() -> Step:
    queries, keys = torch.randn(2, 256, 3, 128, device="cuda", dtype=torch.bfloat16).unbind()
    queue = F.normalize(torch.randn(3, 65_536, 128, device="cuda"), dim=-1).bfloat16().mT
    criterion = MoCoLoss(AdaptiveTemperature(128, tau_min=0.05, score="cosine"), backend="triton").cuda()
    leaves = [queries.requires_grad_(), *criterion.parameters()]
    return lambda: torch.autograd.grad(criterion(queries, keys, queue), leaves)


def _wall(step: Step, seconds: float = 0.3) -> float:
    """Median milliseconds of a step, of groups of `_STEPS` between two waits for the device."""
    times: list[float] = []
    stop = time.monotonic() + seconds
    while len(times) < 3 or time.monotonic() < stop:
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(_STEPS):
            step()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - started) * 1e3 / _STEPS)
    return median(times)


def _captured(step: Step) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph

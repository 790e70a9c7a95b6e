"""Whole losses on a GPU, from projections to the gradients of projections and φ, and their share of a training step.

A row of a loss: `case`, `run` (`ours`, `dense`; with `compiled`: by torch.compile; `graphed`: by
torch.cuda.make_graphed_callables), `wall_ms`, and of the first two `busy_ms`, `kernels` (launches a step) and
`graph_ms` as in `benchmarks.gpu.breakdown`; of `graphed` `same_bits`, whether loss and gradients of new inputs are
eager's, and their relative `difference`; where φ's precision is set `products`, the library's kernels.

A row of a training step: `loss`, `run`, `wall_ms`, `peak_gib`, `images_per_second`.
"""

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..cases import Case, named
from ..check import WrongResult, relative_error
from ..ours import module_of
from ..peers import implementation
from ..step import step_of
from . import breakdown, device

Row = dict[str, Any]
_WHOLE, _MOCO = "Whole loss: AMCL-SimCLR, N = 512, InfoNCE", "Whole loss: AMCL-MoCo, N = 256, queue 65,536"
# After the losses themselves, since torch.compile takes its time.
_COMPILED = (("ours", 256), ("dense", 256), ("dense", 4096))


def cases() -> dict[str, Case]:
    """The losses that are measured, by what tables call them."""
    whole = named(_WHOLE)
    hard = whole.settings | {"negatives": "topk_softmax", "top_k": 100}
    found = []
    for batch in (256, 512, 4096):
        name = f"Whole loss: AMCL-SimCLR, N = {batch}, InfoNCE"
        found.append(replace(whole, name=name, rows=2 * batch))
        found.append(replace(whole, name=f"{name} over the 100 hardest", rows=2 * batch, settings=hard))
    found.append(named(_MOCO))
    return {case.name: device.sized(case) for case in found}


def steps() -> dict[tuple[str, str], Callable[[], Row]]:
    """By (case, run) what makes the row."""
    found: dict[tuple[str, str], Callable[[], Row]] = {}
    every = cases()
    for name, case in every.items():
        found[name, "ours"] = partial(_times, case, "ours")
    for name, case in every.items():
        found[name, "graphed"] = partial(_graphed, case)
    for name, case in every.items():
        if name.endswith("InfoNCE") or case.operator == "moco":
            found[name, "dense"] = partial(_times, case, "dense")
    for name in (f"{_WHOLE.replace('512', '4096')}", _MOCO):
        for precision in ("float32", "tf32"):
            case = device.sized(replace(every[name], settings=every[name].settings | {"precision": precision}))
            found[f"{name}, φ in {precision}", "ours"] = partial(_of_precision, case)
    for run, batch in _COMPILED:
        name = _WHOLE.replace("512", str(batch))
        found[name, f"{run}, compiled"] = partial(_compiled, every[name], run)
    return {key: partial(_named, make, *key) for key, make in found.items()}


def _named(make: Callable[[], Row], case: str, run: str) -> Row:
    return {"case": case, "run": run, **make()}


def _times(case: Case, run: str) -> Row:
    row = breakdown.break_down(breakdown.step_of_case(case, run))
    return row | {"kernels": sum(kernel["calls"] for kernel in row["kernels"])}


def _compiled(case: Case, run: str) -> Row:
    run_ = device.compiled_by_torch(implementation(breakdown.backend(run), case))
    return {"wall_ms": device.wall(step_of(run_, [_operands(case)]))}


def _graphed(case: Case) -> Row:
    eager = module_of(device.BACKEND, case).to(device.KIND)
    inputs = 3 if case.operator == "moco" else 2
    first, *others = (tuple(t for t in _operands(case, seed)[:inputs] if t is not None) for seed in range(4))
    graphed = device.graphed(copy.deepcopy(eager), first)
    same, difference = True, 0.0
    for other in others:
        found, expected = (_result(module, other) for module in (graphed, eager))
        same &= all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        difference = max(difference, relative_error(found, [t.double() for t in expected]))
    wall = device.wall(lambda: _result(graphed, others[0]))
    return {"wall_ms": wall, "same_bits": same, "difference": difference}


def _of_precision(case: Case) -> Row:
    """Raises WrongResult where a step leaves torch's own precision of products other than it was."""
    before = torch.backends.cuda.matmul.fp32_precision
    step = breakdown.step_of_case(case, "ours")
    row = breakdown.break_down(step)
    after = torch.backends.cuda.matmul.fp32_precision
    if after != before:
        raise WrongResult(f"a step leaves torch.backends.cuda.matmul.fp32_precision at {after!r}, it was {before!r}")
    library = [kernel for kernel in row["kernels"] if re.search("gemm|nvjet|cutlass", kernel["name"])]
    return row | {"kernels": sum(kernel["calls"] for kernel in row["kernels"]), "products": library}


def _result(module: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Loss and gradients of the inputs and of φ."""
    leaves = [t for t in inputs if t.requires_grad]
    if isinstance(module, torch.nn.Module):
        leaves += module.parameters()
    loss = module(*inputs)
    return loss.detach(), *torch.autograd.grad(loss, leaves)


def _operands(case: Case, seed: int = 0) -> list[Tensor | None]:
    return case.operands(device.KIND, case.dtype_on("cuda"), seed)


_TRAINED = (
    ("none", "none"),
    ("InfoNCE over all", "ours"),
    ("InfoNCE over the 100 hardest", "ours"),
    ("InfoNCE over all", "dense"),
    ("none", "none again"),
)


def trainings() -> dict[tuple[str, str], Callable[[], Row]]:
    """By (loss, run) what measures a ResNet-50's step: two views, bfloat16, channels_last, SGD.

    `none` is the mean of the projections, which costs nothing; `dense` is InfoNCE over all as anyone writes it.
    """
    return {(loss, run): partial(_trained, loss, run) for loss, run in _TRAINED}


def _trained(name: str, run: str) -> Row:
    every = cases()
    case = every[f"{_WHOLE.replace('512', '256')}{' over the 100 hardest' if 'hardest' in name else ''}"]
    batch, size = device.training_size()
    case = replace(case, rows=2 * batch)
    torch.manual_seed(0)
    images = torch.randn(2 * batch, 3, size, size, device=device.KIND).to(memory_format=torch.channels_last)
    encoder = device.encoder(case.heads * case.width)
    phi = [t for t in case.operands(device.KIND, torch.float32)[2:] if t is not None]
    optimizer = torch.optim.SGD([*encoder.parameters(), *phi], lr=1e-3, momentum=0.9, fused=True)
    loss_of: Callable[..., Tensor] = (
        (lambda z1, z2, *_: (z1 + z2).float().mean())
        if name == "none"
        else implementation(breakdown.backend(run), case)
    )

    def step() -> None:
        with torch.autocast(device.KIND, dtype=torch.bfloat16):
            z = encoder(images).unflatten(1, (case.heads, -1))
            loss = loss_of(z[:batch], z[batch:], *phi)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for _ in range(3):
        step()
    peak = device.peak_gib(step)
    # Long enough that the host runs ahead of the device, as it does in training.
    wall = device.wall(step, group=10)
    return {"loss": name, "run": run, "wall_ms": wall, "peak_gib": peak, "images_per_second": 1e3 * batch / wall}


def line(row: Row) -> str:
    """A row as text."""
    parts = [f"wall {row['wall_ms']:.3f} ms"]
    if "busy_ms" in row:
        graph = row["graph_problem"] if row["graph_ms"] is None else f"{row['graph_ms']:.3f} ms"
        parts += [f"busy {row['busy_ms']:.3f} ms", f"graph {graph}", f"{row['kernels']:.0f} kernels"]
    if "same_bits" in row:
        parts.append("eager's bits" if row["same_bits"] else f"not eager's bits, difference {row['difference']:.0e}")
    return f"{row.get('case') or 'ResNet-50 step, ' + row['loss']}, {row['run']}: {', '.join(parts)}"

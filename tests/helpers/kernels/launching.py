"""Steps of the losses at the sizes of real training, launched by the stand-in of `standin`.

    python -m tests.helpers.kernels.launching [--arch 90] [--only SimCLR] [--table | --host]

Prints one JSON line per case: launches by kernel, and calls of torch's operators that launch. `--table`: as
test_launches.py holds them. `--host`: the µs of the host that a step of a small batch takes, and of these the launches
of Triton's kernels.
"""

import argparse
import contextlib
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch
from triton.runtime.jit import JITFunction

from amcl_fast import AdaptiveTemperature, BarlowTwinsLoss, MoCoLoss, SimCLRLoss, SimSiamLoss, ops
from amcl_fast.kernels.launch import Launched
from tests.helpers.kernels.standin import StandIn, unfilled

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Step = Callable[[], None]


def cases() -> Iterator[tuple[str, Callable[[], Step]]]:
    """A name and what makes a step, forward and backward: every operator, form and dtype, at the largest sizes."""
    for name, dtype in DTYPES.items():
        yield f"SimCLR N=256 softmax {name}", lambda t=dtype: simclr(256, t, "softmax", positive=True)
        yield f"SimCLR N=65536 topk_mean {name}", lambda t=dtype: simclr(65_536, t, "topk_mean", score="dot")
    for form in ("topk_softmax", "topk_mean"):
        yield f"SimCLR N=256 {form}", lambda f=form: simclr(256, torch.bfloat16, f)
    yield "NT-Xent N=256", lambda: simclr(256, torch.bfloat16, "softmax", positive=True, tau=0.5)
    yield "SimCLR N=65536 softmax", lambda: simclr(65_536, torch.bfloat16, "softmax", positive=True)
    yield "SimCLR N=65536 top 2000", lambda: simclr(65_536, torch.bfloat16, "topk_softmax", top_k=2000)
    yield "SimCLR N=4096 C=16", lambda: simclr(4096, torch.bfloat16, "topk_softmax", heads=16)
    for d in (512, 8192):
        for form in ("softmax", "topk_softmax"):
            yield f"SimCLR N=512 d={d} {form}", lambda f=form, d=d: simclr(512, torch.bfloat16, f, dim=d)
    for form in ("softmax", "topk_softmax"):
        yield f"MoCo N=256 K=262144 {form}", lambda f=form: moco(256, 262_144, torch.bfloat16, f)
    yield "MoCo N=256 K=65536", lambda: moco(256, 65_536, torch.bfloat16, "topk_softmax")
    for n, form in ((256, "topk_softmax"), (256, "softmax"), (4096, "topk_mean"), (65_536, "softmax")):
        yield f"perplexity N={n} {form}", lambda n=n, f=form: perplexity(n, torch.bfloat16, f)
    yield "perplexity N=65536 top 2000", lambda: perplexity(65_536, torch.bfloat16, "topk_softmax", top_k=2000)
    yield "τ per anchor N=256 softmax", lambda: perplexity(256, torch.bfloat16, "softmax", learned=True)
    for name, dtype in DTYPES.items():
        yield f"SimSiam N=4096 d=8192 {name}", lambda t=dtype: simsiam(4096, 8192, t)
        yield f"Barlow d=8192 N=1024 {name}", lambda t=dtype: barlow(1024, 8192, t)
    yield "Barlow d=2048 N=512 C=16", lambda: barlow(512, 2048, torch.bfloat16, heads=16)


def temperature(dim: int, tau: float | None, score: str) -> float | AdaptiveTemperature:
    return AdaptiveTemperature(dim, score=score) if tau is None else tau


def projections(n: int, heads: int, dim: int, dtype: torch.dtype, count: int = 2) -> list[torch.Tensor]:
    return [torch.empty(n, heads, dim, dtype=dtype).requires_grad_() for _ in range(count)]


def simclr(n, dtype, negatives, heads=3, dim=128, top_k=100, positive=False, tau=None, score="cosine") -> Step:
    criterion = SimCLRLoss(
        temperature(dim, tau, score), negatives=negatives, top_k=top_k, include_positive=positive, backend="triton"
    )
    return stepping(criterion, projections(n, heads, dim, dtype))


def moco(n, keys, dtype, negatives, heads=3, dim=128, score="cosine") -> Step:
    criterion = MoCoLoss(temperature(dim, None, score), negatives=negatives, backend="triton")
    return stepping(criterion, [*projections(n, heads, dim, dtype), torch.empty(heads, dim, keys, dtype=dtype)])


def perplexity(n, dtype, negatives, heads=3, dim=128, top_k=100, learned=False) -> Step:
    """The operators alone, one table; `learned`: its temperatures are leaves, and not calibrated."""
    table = torch.empty(heads, 2 * n, dim, dtype=dtype).requires_grad_()
    skip = torch.zeros(2 * n, 2, dtype=torch.int64)
    leaf = torch.ones(heads, 2 * n).requires_grad_()
    settings = {"tau_min": 0.01, "tau_max": 1.0, "negatives": negatives, "top_k": top_k, "backend": "triton"}

    def step() -> None:
        tau, chosen = leaf, None
        if not learned:
            tau, chosen = ops.calibrate(table, table, skip, perplexity=0.25, **settings)
        rows, _ = ops.contrast(table, table, None, None, None, skip, tau=tau, chosen=chosen, beta=0.0, **settings)
        torch.autograd.grad(rows, [table, leaf] if learned else [table], rows.detach())

    return step


def simsiam(n, dim, dtype, heads=3) -> Step:
    criterion = SimSiamLoss(temperature(dim, None, "cosine"), backend="triton")
    return stepping(criterion, projections(n, heads, dim, dtype, 4))


def barlow(n, dim, dtype, heads=1) -> Step:
    criterion = BarlowTwinsLoss(temperature(n, None, "cosine"), backend="triton")
    return stepping(criterion, projections(n, heads, dim, dtype))


def stepping(criterion: torch.nn.Module, inputs: list[torch.Tensor]) -> Step:
    """A step: the loss of `inputs` and its gradients, which are new ones each time."""
    leaves = [leaf for leaf in (*inputs, *criterion.parameters()) if leaf.requires_grad]

    def step() -> None:
        torch.autograd.grad(criterion(*inputs), leaves, allow_unused=True)

    return step


# Tensors so small that the CPU's arithmetic takes no time; the launches are those of N = 256 but for sums over parts.
SMALL = {
    "SimCLR softmax, positive": lambda: simclr(16, torch.bfloat16, "softmax", dim=16, positive=True),
    "SimCLR topk_softmax, positive": lambda: simclr(16, torch.bfloat16, "topk_softmax", dim=16, top_k=4, positive=True),
    "NT-Xent": lambda: simclr(16, torch.bfloat16, "softmax", dim=16, positive=True, tau=0.5),
    "MoCo topk_softmax": lambda: moco(16, 256, torch.bfloat16, "topk_softmax", dim=16),
    "SimSiam": lambda: simsiam(16, 16, torch.bfloat16),
    "Barlow Twins": lambda: barlow(16, 16, torch.bfloat16),
}


def host(standin: StandIn, arch: int) -> Iterator[dict[str, object]]:
    """What a step costs the host, in µs: the whole, and the launches of Triton's kernels from call to return."""
    for name, build in SMALL.items():
        step = build()
        standin.install(arch)
        counts = counted(standin, step)
        standin.install(arch, named=False)
        whole, launches = least(step)
        yield {
            "case": name, "triton": counts["triton"], "torch": counts["torch"], "step": round(whole),
            "launches": round(launches), "of one": round(launches / counts["triton"], 1),
        }  # fmt: skip


def least(step: Step, runs: int = 500) -> tuple[float, float]:
    """The shortest of some steps, and the shortest of each launch added up, in µs: others may use the machine."""
    whole, each = [], []
    for _ in range(runs):
        began = time.perf_counter()
        step()
        whole.append(time.perf_counter() - began)
    with contextlib.ExitStack() as patches:
        spent = [patches.enter_context(timed(kind)) for kind in (JITFunction, Launched)]
        for _ in range(runs):
            step()
            each.append([time for times in spent for time in times])
            for times in spent:
                times.clear()
    return 1e6 * min(whole), 1e6 * sum(map(min, zip(*each, strict=True)))


@contextlib.contextmanager
def timed(kind: type) -> Iterator[list[float]]:
    """Seconds of the launches of such kernels, one after the other."""
    times, of_grid = [], kind.__getitem__

    def getitem(kernel, grid):
        launch = of_grid(kernel, grid)

        def measured(*arguments, **constants):
            began = time.perf_counter()
            launch(*arguments, **constants)
            times.append(time.perf_counter() - began)

        return measured

    with mock.patch.object(kind, "__getitem__", getitem):
        yield times


def main() -> None:
    """Launch and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, default=90, help="compute capability, times ten")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--table", action="store_true", help="print the table of test_launches.py")
    parser.add_argument("--host", action="store_true", help="print what a step costs the host")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        standin = StandIn(Path(folder))
        standin.install(arguments.arch)
        for line in host(standin, arguments.arch) if arguments.host else ():
            print(json.dumps(line), flush=True)
        for name, build in () if arguments.host else cases():
            if arguments.only not in name:
                continue
            found = counted(standin, build())
            row = f'    "{name}": ({found["triton"]}, {found["torch"]}),'
            print(row if arguments.table else json.dumps({"case": name} | found), flush=True)


def counted(standin: StandIn, step: Step) -> dict[str, object]:
    """What a step launches, and what the process has held of the machine's memory, in MiB."""
    standin.clear()
    with unfilled() as torchs:
        step()
    return {
        "triton": sum(standin.kernels.values()),
        "torch": sum(torchs.operators.values()),
        "kernels": dict(standin.kernels),
        "operators": dict(torchs.operators),
        "resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


if __name__ == "__main__":
    main()

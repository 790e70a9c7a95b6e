"""All that needs a GPU, in one command: `python -m benchmarks.gpu`.

In this order: every operator on the device against float64 (a failure ends the run: no timings of wrong results); the
same bits in two runs; compute-sanitizer's memcheck on ragged sizes, where it is installed; timings beside the peers.
Results go to benchmarks/results/<device>.json, a table to the terminal. Takes less than eight minutes on an H100.
"""

import argparse
import datetime as dt
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from amcl_fast import reference
from amcl_fast.ops import triton as kernels

from . import peers
from .cases import CASES, Case

RESULTS = Path(__file__).parent / "results"
# Error of the result and of each gradient, ‖found − exact‖ / ‖exact‖.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def small_cases() -> list[Case]:
    """Every operator and form at ragged sizes."""
    contrast = Case("", "contrast", 2, 190, 0, 80, {"tau_min": 0.05, "tau_max": 2.0, "beta": 1e-3})
    cases = []
    for tau_max in (2.0, 0.05):
        for negatives, top_k in (
            ("topk_mean", 20), ("topk_softmax", 1), ("topk_softmax", 100), ("softmax", None), ("topk_mean", 1000)
        ):  # fmt: skip
            settings = contrast.settings | {"tau_max": tau_max, "negatives": negatives, "top_k": top_k}
            for candidates, width in ((0, 80), (1111, 33), (0, 300)):
                name = f"{negatives} {top_k}, {candidates or 190} candidates, d = {width}, τ ≤ {tau_max}"
                cases.append(
                    replace(contrast, name=name, candidates=candidates, width=width, settings=settings)
                )
        settings = {"tau_min": 0.05, "tau_max": tau_max, "beta": 1e-3}
        cases.append(Case(f"align, τ ≤ {tau_max}", "align", 2, 77, 0, 300, settings | {"weight": 0.5}))
        cases.append(
            Case(f"decorrelate, τ ≤ {tau_max}", "decorrelate", 2, 190, 0, 70, settings | {"lambd": 5e-3})
        )
    return cases


def evaluate(operator: Callable[..., Any], operands: list[Tensor | None], settings: dict[str, Any]) -> list[Tensor]:
    """Result and gradients, weighted unequally so that errors do not cancel."""
    leaves = [
        t.detach().requires_grad_(t.requires_grad) if t is not None and t.is_floating_point() else t for t in operands
    ]
    result = operator(*leaves, **settings)
    result = result if isinstance(result, Tensor) else result[0]
    weights = torch.linspace(0.5, 1.5, result.numel(), device=result.device, dtype=result.dtype)
    (result * weights.reshape(result.shape)).sum().backward()
    return [result.detach(), *(t.grad for t in leaves if t is not None and t.requires_grad and t.grad is not None)]


def worst_error(case: Case, device: str, dtype: torch.dtype) -> float:
    """Largest relative error of the kernels against float64, over the result and all gradients; NaN counts as ∞.

    Raises:
        AssertionError: two runs of the kernels differ in a bit.
    """
    operands = case.operands(device, dtype)
    found = evaluate(getattr(kernels, case.operator), operands, case.settings)
    again = evaluate(getattr(kernels, case.operator), operands, case.settings)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True)), f"{case.name}: two runs differ"
    exact_operands = [
        t.double().detach().requires_grad_(t.requires_grad) if t is not None and t.is_floating_point() else t
        for t in operands
    ]
    expected = evaluate(getattr(reference, case.operator), exact_operands, case.settings)
    errors = [
        ((a.double() - b).norm() / b.norm().clamp_min(1e-30)).item() for a, b in zip(found, expected, strict=True)
    ]
    return max(error if error == error else float("inf") for error in errors)


def check(device: str, cases: list[Case], dtypes: tuple[torch.dtype, ...]) -> list[dict[str, Any]]:
    """Errors of all cases; SystemExit if one is over its tolerance."""
    rows: list[dict[str, Any]] = []
    for case in cases:
        for dtype in dtypes:
            error = worst_error(case, device, dtype)
            rows.append({"case": case.name, "dtype": str(dtype), "error": error, "tolerance": TOLERANCE[dtype]})
    wrong = [row for row in rows if row["error"] > row["tolerance"]]
    for row in wrong:
        print(f"WRONG  {row['case']}  {row['dtype']}: relative error {row['error']:.2e}", file=sys.stderr)
    if wrong:
        raise SystemExit(f"{len(wrong)} of {len(rows)} checks failed; nothing was timed")
    return rows


def memcheck() -> str:
    """Run a few ragged checks under compute-sanitizer, if there is one; returns its summary."""
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if tool is None:
        return "not run: no compute-sanitizer"
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-m", "benchmarks.gpu", "--ragged"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    except subprocess.TimeoutExpired:
        return "not finished within 150 s"
    summary = re.findall(r"ERROR SUMMARY: .*", done.stdout + done.stderr)
    if done.returncode:
        raise SystemExit(f"compute-sanitizer: {(done.stdout + done.stderr)[-3000:]}")
    return summary[-1] if summary else "no summary"


def interleaved(runs: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median milliseconds of each run, measured by events and in turn, so that drift meets all alike."""
    for run in runs.values():
        for _ in range(3):
            run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    torch.cuda.synchronize()
    stop = time.monotonic() + seconds
    while time.monotonic() < stop or min(map(len, times.values())) < 3:
        for name, run in runs.items():
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            run()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end))
    return {name: statistics.median(values) for name, values in times.items()}


def extra_memory(step: Callable[[], object]) -> int:
    """Peak bytes of a step beside what stood before it."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def step_of(
    operator: Callable[..., Any], case: Case, sets: list[list[Tensor | None]]
) -> Callable[[], tuple[Tensor | None, ...]]:
    """Forward and backward pass on each set of operands in turn: one set alone might stay in the cache."""
    count = 0

    def step() -> tuple[Tensor | None, ...]:
        nonlocal count
        operands = sets[count % len(sets)]
        count += 1
        result = operator(*operands, **case.settings)
        result = result if isinstance(result, Tensor) else result[0]
        leaves = [t for t in operands if t is not None and t.requires_grad]
        return torch.autograd.grad(result.mean(), leaves)

    return step


def copy_bandwidth() -> float:
    """Bytes per second of a large copy on the device, read and written."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    milliseconds = interleaved({"copy": lambda: target.copy_(source)}, 0.5)["copy"]
    return 2 * source.numel() / (milliseconds / 1e3)


def least_bytes(case: Case, operands: list[Tensor | None]) -> int:
    """What `align` must move: all inputs twice (forward and backward), each gradient once."""
    tables = [t for t in operands[:4] if t is not None]
    return sum(t.nbytes * (3 if t.requires_grad else 2) for t in tables)


def measure(case: Case, seconds: float, bandwidth: float) -> dict[str, Any]:
    """Times, memory and verdicts of one case, bfloat16, forward and backward."""
    big = case.rows > 50_000
    sets = [case.operands("cuda", torch.bfloat16, seed) for seed in range(1 if big else 3)]
    steps = {"kernels": step_of(getattr(kernels, case.operator), case, sets)}
    runs: dict[str, Callable[[], object]] = dict(steps)
    for name in case.peers:
        if name.startswith("products"):
            runs["products"] = peers.products(case, sets[0], 4096 if name != "products" else None)
        else:
            steps[name] = runs[name] = step_of(peers.peer(name, case), case, sets)
    gradients = sum(t.nbytes for t in sets[0] if t is not None and t.requires_grad)
    for step in steps.values():
        step()
    memory = {name: extra_memory(step) - gradients for name, step in steps.items()}
    times = interleaved(runs, seconds)
    ours = times["kernels"]
    ratios = {name: value / ours for name, value in times.items() if name not in ("kernels", "products")}
    if "products" in times:
        ratios["products"] = ours / times["products"]
    if "dense" in memory:
        ratios["memory"] = memory["dense"] / max(memory["kernels"], 1)
    ratios["gib"] = memory["kernels"] / 2**30
    if case.operator == "align":
        ratios["bandwidth"] = least_bytes(case, sets[0]) / (ours / 1e3) / bandwidth
    met = {
        name: ratios[name] <= target if name in ("products", "gib") else ratios[name] >= target
        for name, target in case.targets.items()
    }
    return {
        "case": case.name, "milliseconds": times, "extra_bytes": memory, "ratios": ratios, "targets": case.targets,
        "met": met,
    }  # fmt: skip


def environment() -> dict[str, str]:
    """Device, versions, commit and date."""

    def output(*command: str) -> str:
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return "unknown"

    return {
        "device": torch.cuda.get_device_name(),
        "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": output("git", "rev-parse", "HEAD"),
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: one line per case."""
    heads = ("case", "kernels, ms", "dense, ×", "compiled, ×", "chunked, ×", "of products, ×", "memory, ×", "targets")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for result in results:
        ratios = result["ratios"]
        columns = (ratios.get(k) for k in ("dense", "compiled", "chunked", "products", "memory"))
        cells = ["–" if value is None else f"{value:.1f}" for value in columns]
        verdicts = ", ".join(
            f"{name} {ratios[name]:.2f} ({'met' if met else 'missed'}: {result['targets'][name]})"
            for name, met in result["met"].items()
        )
        lines.append(
            f"| {result['case']} | {result['milliseconds']['kernels']:.3f} | {' | '.join(cells)} | {verdicts or '–'} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Check, then time."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check-only", action="store_true", help="no timings")
    parser.add_argument("--ragged", action="store_true", help="a few checks only, for compute-sanitizer")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each case's measurements")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu needs an NVIDIA GPU, and torch sees none: torch.cuda.is_available() is False")
    if options.ragged:
        check("cuda", small_cases()[::4], (torch.bfloat16,))
        return
    checks = check("cuda", small_cases(), (torch.bfloat16,))
    # The other dtypes at one width: each width costs its own compilations.
    checks += check("cuda", [c for c in small_cases() if c.width in (70, 80)], (torch.float32, torch.float16))
    print(f"{len(checks)} checks passed, each the same in two runs")
    sanitizer = memcheck()
    print(f"compute-sanitizer: {sanitizer}")
    report: dict[str, Any] = {"environment": environment(), "checks": checks, "memcheck": sanitizer, "results": []}
    if not options.check_only:
        bandwidth = copy_bandwidth()
        report["copy_bytes_per_second"] = bandwidth
        for case in CASES:
            report["results"].append(measure(case, options.seconds, bandwidth))
            torch.cuda.empty_cache()
        print(table(report["results"]))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / (re.sub(r"\W+", "-", report["environment"]["device"]).strip("-").lower() + ".json")
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written: {path}")


if __name__ == "__main__":
    main()

"""All that needs a GPU, in one command: `python -m benchmarks.gpu`.

In this order: every operator on the device against float64 (a failure ends the run: no timings of wrong results); the
same bits in two runs; compute-sanitizer's memcheck on ragged sizes, where it is installed; timings beside the peers.
Results go to the machine's JSON, a table to the terminal, plots beside the JSON where matplotlib is installed. Takes
less than eight minutes on an H100, and needs torch, triton and numpy only.
"""

import argparse
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from . import operators, report, results
from .cases import CASES, Case
from .check import Oracle
from .peers import implementation


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
                cases.append(replace(contrast, name=name, candidates=candidates, width=width, settings=settings))
        settings = {"tau_min": 0.05, "tau_max": tau_max, "beta": 1e-3}
        cases.append(Case(f"align, τ ≤ {tau_max}", "align", 2, 77, 0, 300, settings | {"weight": 0.5}))
        cases.append(Case(f"decorrelate, τ ≤ {tau_max}", "decorrelate", 2, 190, 0, 70, settings | {"lambd": 5e-3}))
    return cases


def check(device: str, cases: list[Case], dtypes: tuple[torch.dtype, ...]) -> list[dict[str, Any]]:
    """Errors of the kernels in all cases; SystemExit if one is over its tolerance or two runs differ in a bit."""
    rows: list[dict[str, Any]] = []
    problems = []
    for case in cases:
        for dtype in dtypes:
            name = f"{case.name}, {str(dtype).removeprefix('torch.')}"
            oracle, run = Oracle(case, device, dtype), implementation("triton", case)
            first, second = oracle.evaluate(run), oracle.evaluate(run)
            error = oracle.error_of(first)
            rows.append({"case": name, "error": error, "tolerance": oracle.tolerance})
            if error > oracle.tolerance:
                problems.append(f"{name}: relative error {error:.2e}, tolerance {oracle.tolerance:.2e}")
            pairs = [pair for both in zip(first, second, strict=True) for pair in zip(*both, strict=True)]
            if not all(torch.equal(a, b) for a, b in pairs):
                problems.append(f"{name}: two runs differ")
    for problem in problems:
        print(f"WRONG  {problem}", file=sys.stderr)
    if problems:
        raise SystemExit(f"{len(problems)} problems in {len(rows)} checks; nothing was timed")
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


def main(arguments: list[str] | None = None) -> None:
    """Check, then time."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check-only", action="store_true", help="no timings")
    parser.add_argument("--ragged", action="store_true", help="a few checks only, for compute-sanitizer")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each case's measurements")
    parser.add_argument("--output", type=Path, default=results.default_folder(), help="folder of the JSON")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu needs an NVIDIA GPU, and torch sees none: torch.cuda.is_available() is False")
    if options.ragged:
        check("cuda", small_cases()[::4], (torch.bfloat16,))
        return
    path = results.path_of(options.output, "cuda")
    with results.environment() as about:
        checks = check("cuda", small_cases(), (torch.bfloat16,))
        # The other dtypes at one width: each width costs its own compilations.
        checks += check("cuda", [c for c in small_cases() if c.width in (70, 80)], (torch.float32, torch.float16))
        print(f"{len(checks)} checks passed, each the same in two runs", flush=True)
        about["memcheck"] = memcheck()
        print(f"compute-sanitizer: {about['memcheck']}", flush=True)
    results.save(path, "cuda", "checks", about, checks)
    if not options.check_only:
        _time(path, options.seconds)
    print(f"written: {path}")


def _time(path: Path, seconds: float) -> None:
    rows, wrong = [], []
    with results.environment() as about:
        about["copy_bytes_per_second"] = bandwidth = operators.copy_bandwidth()
        for case in CASES:
            if "cuda" not in case.targets:
                continue
            try:
                rows.append(operators.measure(case, "cuda", "triton", seconds, bandwidth))
                print(f"{case.name}: {report.operator_line(rows[-1])}", flush=True)
            except operators.WrongResult as problem:
                wrong.append(str(problem))
            torch.cuda.empty_cache()
    results.save(path, "cuda", "operators", about, rows)
    print(report.operators(rows))
    try:
        from . import plot

        for picture in plot.draw(results.load(path), path.parent):
            print(f"written: {picture}")
    except ImportError:
        print("no plots: matplotlib is not installed")
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()

"""All that needs a GPU, in one command: `python -m benchmarks.gpu`.

Five parts, in this order; those that are named, or all:

- `checks`: every operator on the device against float64, at ragged and unusual inputs, and the same bits in two runs;
- `breakdown`: the device's ceilings; kernels, idle time and graph replay of operators and whole losses; a ResNet-50's
  step with each loss;
- `sweep`: the kernels with other launch parameters than their launchers choose;
- `timings`: the cases with a GPU's name on them beside their peers, each checked before it is timed;
- `memcheck`: some of the checks under compute-sanitizer, where it is installed.

What fails is told at the end, with exit code 1, and takes nothing else with it: results go to the machine's JSON after
every part and every case. A table goes to the terminal, plots beside the JSON where matplotlib is installed. Needs the
installed package (`pip install --no-build-isolation --no-deps -e .`), torch, triton and numpy only, and torchvision for
the ResNet-50. One part at a time where a command may not run for ten minutes.
"""

import argparse
import contextlib
import importlib.util
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import breakdown, operators, report, results, sweep
from .cases import CASES, Case, Operands
from .check import Oracle
from .peers import implementation

PARTS = ("checks", "breakdown", "sweep", "timings", "memcheck")
_MEMCHECK_SECONDS = 120

# A case, and the dtypes to check it in.
Task = tuple[Case, tuple[torch.dtype, ...]]


@dataclass(frozen=True)
class UnusualCase(Case):
    """With an offset of r, tables that are views of transposed ones, and a third of the queue's keys equal."""

    def operands(self, device: str, dtype: torch.dtype, seed: int = 0, *, on_grid: bool = False) -> Operands:
        """As `Case.operands`."""
        tensors = super().operands(device, dtype, seed, on_grid=on_grid)
        tables, skip = tensors[:4], tensors[5:]
        if self.candidates and tables[1] is not None:
            tables[1] = tables[1].detach().clone()
            tables[1][:, ::3] = tables[1][:, :1]
        turned = [
            None if t is None else t.detach().mT.contiguous().mT.requires_grad_(needed)
            for t, needed in zip(tables, self.gradients, strict=True)
        ]
        offset = torch.tensor(0.5, device=device, dtype=dtype, requires_grad=True) if self.adaptive else None
        return [*turned, offset, *skip]


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


def unusual_cases() -> list[Case]:
    """Offsets, strides, many equal candidates, and κ beyond what is put in order."""
    settings = {"tau_min": 0.05, "tau_max": 2.0, "beta": 1e-3}
    cases: list[Case] = []
    form: dict[str, Any]
    for negatives, top_k in (("topk_mean", 20), ("topk_softmax", 1100), ("softmax", None)):
        form = settings | {"negatives": negatives, "top_k": top_k}
        cases.append(UnusualCase(f"unusual {negatives} {top_k}", "contrast", 2, 70, 1300, 80, form))
    form = settings | {"negatives": "topk_softmax", "top_k": 20}
    cases.append(UnusualCase("unusual SimCLR", "contrast", 2, 70, 0, 80, form))
    # 1/τ of up to 1e5, where a bit of s or of τ decides; and rows among which every similarity is a tie.
    for negatives, top_k in (("topk_mean", 20), ("topk_softmax", 20), ("softmax", None)):
        form = settings | {"negatives": negatives, "top_k": top_k}
        least = form | {"tau_min": 1e-5}
        cases.append(Case(f"τ from 1e-5, {negatives} {top_k}", "contrast", 2, 190, 0, 80, least))
        cases.append(breakdown.EqualRows(f"equal rows, {negatives} {top_k}", "contrast", 2, 190, 0, 80, form))
    cases.append(UnusualCase("unusual align", "align", 2, 77, 0, 300, settings | {"weight": 0.5}))
    cases.append(UnusualCase("unusual decorrelate", "decorrelate", 2, 190, 0, 70, settings | {"lambd": 5e-3}))
    return cases


@contextlib.contextmanager
def noted(name: str, problems: list[str]) -> Iterator[None]:
    """Tell an exception and add it to `problems` instead of raising it, so that what comes next is still done."""
    try:
        yield
    except Exception as error:
        problems.append(f"{name}: {str(error) or type(error).__name__}")
        print(f"FAILED  {problems[-1]}", file=sys.stderr, flush=True)


def check(device: str, cases: list[Case], dtypes: tuple[torch.dtype, ...], problems: list[str]) -> list[dict[str, Any]]:
    """Errors of the kernels in all cases; one over its tolerance and runs that differ in a bit are `problems`."""
    rows: list[dict[str, Any]] = []
    for case in cases:
        for dtype in dtypes:
            name = f"{case.name}, {str(dtype).removeprefix('torch.')}"
            with noted(name, problems):
                oracle, run = Oracle(case, device, dtype), implementation("triton", case)
                first, second = oracle.evaluate(run), oracle.evaluate(run)
                error = oracle.error_of(first)
                pairs = [pair for both in zip(first, second, strict=True) for pair in zip(*both, strict=True)]
                same = all(torch.equal(a, b) for a, b in pairs)
                rows.append({"case": name, "error": error, "tolerance": oracle.tolerance, "same_twice": same})
                if error > oracle.tolerance:
                    raise operators.WrongResult(f"relative error {error:.2e}, tolerance {oracle.tolerance:.2e}")
                if not same:
                    raise operators.WrongResult("two runs differ")
    return rows


def all_checks(problems: list[str], jobs: int = 1) -> list[dict[str, Any]]:
    """Every check of a GPU, in `jobs` processes side by side: most of their time is compilation on the host."""
    # The other dtypes at one width: each width costs its own compilations.
    all_dtypes = (torch.bfloat16, torch.float32, torch.float16)
    tasks: list[Task] = [(case, all_dtypes if case.width in (70, 80) else all_dtypes[:1]) for case in small_cases()]
    tasks += [(case, all_dtypes) for case in unusual_cases()]
    shares = [tasks[number::jobs] for number in range(jobs)]
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        done: list[Callable[[], tuple[list[dict[str, Any]], list[str]]]]
        if jobs == 1:
            done = [partial(_check_share, share) for share in shares]
        else:
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(jobs, context))
            done = [pool.submit(_check_share, share).result for share in shares]
        for number, result in enumerate(done):
            with noted(f"checks, share {number + 1} of {jobs}", problems):
                found, failed = result()
                rows += found
                problems += failed
    return rows


def _check_share(tasks: list[Task]) -> tuple[list[dict[str, Any]], list[str]]:
    problems: list[str] = []
    return [row for case, dtypes in tasks for row in check("cuda", [case], dtypes, problems)], problems


def memcheck() -> str:
    """Run some checks under compute-sanitizer, if there is one; returns its summary.

    Raises:
        WrongResult: it found something, or the checks failed.
    """
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if tool is None:
        return "not run: no compute-sanitizer"
    # Calls of the driver that libraries try and that fail are no errors of ours.
    command = [tool, "--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", "9"]
    command += [sys.executable, "-m", "benchmarks.gpu", "--ragged"]
    # Every tensor by an allocation of its own, or a wrong address leads into the next tensor of the same.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,  # the tool's own child must end with it
    )
    try:
        printed, _ = process.communicate(timeout=_MEMCHECK_SECONDS)
    except subprocess.TimeoutExpired:
        return f"not finished within {_MEMCHECK_SECONDS} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        raise operators.WrongResult(f"exit code {process.returncode}\n{printed[-3000:]}")
    summary = re.findall(r"ERROR SUMMARY: .*", printed)
    return summary[-1] if summary else "no summary"


def main(arguments: list[str] | None = None) -> None:
    """Check, time, look for wrong addresses."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (all)")
    parser.add_argument("--ragged", action="store_true", help="a few checks only, for compute-sanitizer")
    cores = os.cpu_count() or 1
    parser.add_argument("--jobs", type=int, default=max(1, cores // 2), help="processes of the checks (half the cores)")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each case's measurements")
    parser.add_argument("--output", type=Path, default=results.default_folder(), help="folder of the JSON")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"PART must be one of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    parts = options.parts or PARTS
    if importlib.util.find_spec("amcl_fast.kernels") is None:
        raise SystemExit("amcl_fast is not installed: pip install --no-build-isolation --no-deps -e .")
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu needs an NVIDIA GPU, and torch sees none: torch.cuda.is_available() is False")
    problems: list[str] = []
    if options.ragged:
        check("cuda", small_cases()[::4] + unusual_cases(), (torch.bfloat16,), problems)
        raise SystemExit(1 if problems else 0)
    path = results.path_of(options.output, "cuda")
    if "checks" in parts:
        with results.environment() as about:
            rows = all_checks(problems, options.jobs)
        results.save(path, "cuda", "checks", about, rows)
        print(f"{len(rows)} checks, {len(problems)} problems", flush=True)
    if "breakdown" in parts:
        with noted("breakdown", problems):
            _break_down(path, problems)
    if "sweep" in parts:
        with noted("sweep", problems):
            _sweep(path, options.jobs)
    if "timings" in parts:
        with noted("timings", problems):
            _time(path, options.seconds, problems)
    if "memcheck" in parts:
        with noted("compute-sanitizer", problems):
            with results.environment() as about:
                summary = memcheck()
            print(f"compute-sanitizer: {summary}", flush=True)
            results.save(path, "cuda", "memcheck", about, [{"summary": summary}])
    print(f"written: {path}")
    if problems:
        raise SystemExit("\n".join(["", f"{len(problems)} problems:", *problems]))


def _break_down(path: Path, problems: list[str]) -> None:
    rows: list[dict[str, Any]] = []
    with results.environment() as about:
        about |= breakdown.ceilings()
        for row in breakdown.rows():
            rows.append(row)
            results.save(path, "cuda", "breakdown", about, rows)
            print(breakdown.table(rows[-1:]), flush=True)
            if "failed" in row:
                problems.append(f"breakdown of {row['case']}, {row['run']}: {row['failed']}")
    results.save(path, "cuda", "breakdown", about, rows)
    if importlib.util.find_spec("torchvision"):
        with results.environment() as about:
            training = breakdown.training_steps()
        results.save(path, "cuda", "resnet50", about, training)
        for row in training:
            print(f"ResNet-50 step, {row['loss']}, {row['run']}: {row['wall_ms']:.2f} ms", flush=True)


def _sweep(path: Path, jobs: int) -> None:
    rows: list[dict[str, Any]] = []
    with results.environment() as about:
        for row in sweep.rows(jobs):
            rows.append(row)
            results.save(path, "cuda", "sweep", about, rows)
    results.save(path, "cuda", "sweep", about, rows)
    print(sweep.table(rows), flush=True)


def _time(path: Path, seconds: float, problems: list[str]) -> None:
    rows: list[dict[str, Any]] = []
    with results.environment() as about:
        about["copy_bytes_per_second"] = bandwidth = operators.copy_bandwidth()
        for case in CASES:
            if "cuda" not in case.targets:
                continue
            with noted(case.name, problems):
                rows.append(operators.measure(case, "cuda", "triton", seconds, bandwidth))
                print(f"{case.name}: {report.operator_line(rows[-1])}", flush=True)
                results.save(path, "cuda", "operators", about, rows)
                torch.cuda.empty_cache()
    results.save(path, "cuda", "operators", about, rows)
    print(report.operators(rows))
    try:
        from . import plot

        for picture in plot.draw(results.load(path), path.parent):
            print(f"written: {picture}")
    except ImportError:
        print("no plots: matplotlib is not installed")


if __name__ == "__main__":
    main()

"""NVIDIA's tools on parts of the benchmarks, as text: compute-sanitizer and ncu."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import results
from ..check import WrongResult

_MEMCHECK_SECONDS, _NCU_SECONDS = 120, 120
_SECTIONS = ("SpeedOfLight", "LaunchStats", "Occupancy", "WarpStateStats", "MemoryWorkloadAnalysis")
Row = dict[str, Any]


def memcheck() -> Iterator[Row]:
    """A row with the `summary` of compute-sanitizer over some checks, or of why there is none.

    Raises:
        WrongResult: it found something, or the checks failed.
    """
    tool = _found("compute-sanitizer")
    if tool is None:
        yield {"summary": "not run: no compute-sanitizer"}
        return
    # Calls of the driver that libraries try and that fail are no errors of ours.
    command = [tool, "--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", "9"]
    command += [sys.executable, "-m", "benchmarks.gpu", "--ragged"]
    # Every tensor by an allocation of its own, or a wrong address leads into the next tensor of the same.
    code, printed = _run(command, _MEMCHECK_SECONDS, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    if code is None:
        yield {"summary": f"not finished within {_MEMCHECK_SECONDS} s"}
        return
    if code:
        raise WrongResult(f"exit code {code}: {' '.join(printed[-1000:].split())}")
    summary = re.findall(r"ERROR SUMMARY: .*", printed)
    yield {"summary": summary[-1] if summary else "no summary"}


def ncu(path: Path, until: float) -> Iterator[Row]:
    """A row for each of the two kernels of ours that take longest a launch, by the JSON at `path`: `kernel`, `text`.

    What ncu refuses, as it does where the counters are for administrators, is a row with `refused` instead of `text`.
    """
    slowest = _slowest(path)
    tool = _found("ncu")
    if tool is None or not slowest:
        yield {"kernel": "–", "refused": "no ncu" if tool is None else "nothing is broken down yet"}
        return
    for place, (kernel, case) in enumerate(slowest):
        command = [tool, "--kernel-name", f"regex:^{kernel}$", "--launch-skip", "1", "--launch-count", "1"]
        command += [word for section in _SECTIONS for word in ("--section", section)]
        command += [sys.executable, "-m", "benchmarks.gpu", "--step", case]
        left = min(_NCU_SECONDS, (until - time.monotonic()) / (len(slowest) - place))
        code, printed = _run(command, max(1.0, left), {})
        text = [line.rstrip() for line in printed.splitlines() if not line.startswith("==PROF==")]
        if code == 0 and "No kernels were profiled" not in printed:
            yield {"kernel": kernel, "case": case, "text": text}
        else:
            refused = next((line for line in text if "ERR_" in line or "==ERROR==" in line), None)
            refused = refused or (f"not finished within {left:.0f} s" if code is None else f"exit code {code}")
            yield {"kernel": kernel, "case": case, "refused": refused, "text": text[-20:]}


def _slowest(path: Path) -> list[tuple[str, str]]:
    """Kernels of ours and the case of each, by their time a launch."""
    rows = results.load(path)["sections"].get("breakdown", {"rows": []})["rows"] if path.exists() else []
    names = _kernels()
    found: dict[str, tuple[float, str]] = {}
    for row in rows:
        for kernel in row.get("kernels", []):
            name, us = kernel["name"], kernel["us"] / kernel["calls"]
            if row["run"] == "ours" and name in names and us > found.get(name, (0.0, ""))[0]:
                found[name] = us, row["case"]
    return [(name, found[name][1]) for name in sorted(found, key=lambda name: -found[name][0])[:2]]


def _kernels() -> set[str]:
    """Names of the kernels of amcl_fast."""
    from amcl_fast import kernels

    text = "".join(path.read_text() for path in Path(kernels.__file__).parent.rglob("*.py"))
    return set(re.findall(r"@triton\.jit[^\n]*\n(?:@[^\n]*\n)*def (\w+)", text))


def _found(tool: str) -> str | None:
    return shutil.which(tool) or shutil.which(f"/usr/local/cuda/bin/{tool}")


def _run(command: list[str], seconds: float, environment: dict[str, str]) -> tuple[int | None, str]:
    """Exit code (None: it took too long) and what was printed; whatever it started ends with it."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | environment,
        start_new_session=True,  # the tool's own child must end with it
    )
    try:
        printed, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None, ""
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode, printed

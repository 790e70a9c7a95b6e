"""Time of several runs in the same process, in turn."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypedDict

import torch

# About 5 ms, longer than a forward and backward pass takes to issue.
_BUSY_CYCLES = 10_000_000


class Timing(TypedDict):
    """Quartiles over the rounds, in milliseconds."""

    median_ms: float
    q1_ms: float
    q3_ms: float
    rounds: int


def once(run: Callable[[], object], device: str) -> float:
    """Milliseconds of one call: by the clock on `cpu`, by events of the current stream on `cuda`.

    A GPU is kept busy while the call is being issued, or what Python takes to launch short kernels would be measured.
    """
    if device == "cpu":
        started = time.perf_counter()
        run()
        return (time.perf_counter() - started) * 1e3
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(_BUSY_CYCLES)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def summary(milliseconds: list[float]) -> Timing:
    """Quartiles of measured times, at least one."""
    if len(milliseconds) == 1:
        q1 = median = q3 = milliseconds[0]
    else:
        q1, median, q3 = statistics.quantiles(milliseconds, n=4, method="inclusive")
    return {"median_ms": median, "q1_ms": q1, "q3_ms": q3, "rounds": len(milliseconds)}


def interleaved(
    runs: Mapping[str, Callable[[], object]], seconds: float, device: str, *, least: int = 3
) -> dict[str, Timing]:
    """Times of all runs, one call of each a round, so that drift of the machine meets all alike.

    Args:
        runs: by name.
        seconds: rounds go on for this long.
        device: `cpu` or `cuda`.
        least: rounds however long they take.
    """
    # What is long is warm after one call; short runs need a few for clocks and caches.
    for run in runs.values():
        for _ in range(3):
            if once(run, device) > 1e3:
                break
    times: dict[str, list[float]] = {name: [] for name in runs}
    stop = time.monotonic() + seconds
    while time.monotonic() < stop or min(map(len, times.values())) < least:
        for name, run in runs.items():
            times[name].append(once(run, device))
    return {name: summary(values) for name, values in times.items()}

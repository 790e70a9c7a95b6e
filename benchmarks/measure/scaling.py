"""How time and memory of the contrast grow with N, C, d and κ, and with which exponent.

A row: `axis`, `values`, and for `ours`, `dense` and `products` the lists `milliseconds` and `extra_bytes` (null where a
run would take too long, or memory was not measured) with `exponent` and `memory_exponent`, fitted over the upper part
of the axis.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..cases import CASES, Case
from ..check import Oracle, WrongResult
from ..memory import in_fresh_process
from ..peers import implementation, products
from ..step import step_of
from ..timing import interleaved

AXES: dict[str, tuple[int, ...]] = {
    "N": (256, 512, 1024, 2048, 4096),
    "C": (1, 2, 4, 8),
    "d": (32, 64, 128, 256, 512),
    "κ": (1, 10, 100, 1000),
}
# Of dense operations: where the peers stop. Ours goes on.
_MOST_OPERATIONS = {"cpu": 1e11, "cuda": 1e13}


def case_at(axis: str, value: int) -> Case:
    """SimCLR, topk_mean, N = 512, C = 3, d = 128, κ = 100, with one of these replaced."""
    base = next(case for case in CASES if case.name == "SimCLR, N = 512")
    changes: dict[str, dict[str, Any]] = {
        "N": {"rows": 2 * value},
        "C": {"heads": value},
        "d": {"width": value},
        "κ": {"settings": base.settings | {"top_k": value}},
    }
    return replace(base, name=f"{axis} = {value}", **changes[axis])


def measure(axis: str, device: str, backend: str, seconds: float) -> dict[str, Any]:
    """The row of one axis.

    Raises:
        WrongResult: our error is over the tolerance somewhere on it.
    """
    values = AXES[axis]
    row: dict[str, Any] = {"axis": axis, "values": list(values)}
    for name in ("ours", "dense", "products"):
        row[name] = {"milliseconds": [], "extra_bytes": []}
    for value in values:
        point = _point(case_at(axis, value), device, backend, seconds / len(values))
        for name in ("ours", "dense", "products"):
            milliseconds, extra = point.get(name, (None, None))
            row[name]["milliseconds"].append(milliseconds)
            row[name]["extra_bytes"].append(extra)
    for name in ("ours", "dense", "products"):
        row[name]["exponent"] = exponent(values, row[name]["milliseconds"])
        row[name]["memory_exponent"] = exponent(values, row[name]["extra_bytes"])
    return row


def _point(case: Case, device: str, backend: str, seconds: float) -> dict[str, tuple[float, int | None]]:
    """Milliseconds and extra bytes of what is measured at one point."""
    dtype = case.dtype_on(device)
    ours = implementation(backend, case)
    oracle = Oracle(case, device, dtype)
    if (error := oracle.error(ours)) > oracle.tolerance:
        raise WrongResult(f"scaling, {case.name}: relative error {error:.1e}, tolerance {oracle.tolerance:.1e}")
    sets = [case.operands(device, dtype, seed) for seed in range(2)]
    steps: dict[str, Callable[[], object]] = {"ours": step_of(ours, sets)}
    extra = {"ours": in_fresh_process(case, backend, device)}
    if case.operations <= _MOST_OPERATIONS[device]:
        steps["dense"] = step_of(implementation("dense", case), sets)
        extra["dense"] = in_fresh_process(case, "dense", device)
        steps["products"] = products(case, sets[0])
    times = interleaved(steps, seconds, device)
    return {name: (timing["median_ms"], extra.get(name)) for name, timing in times.items()}


def exponent(values: Sequence[float], measured: Sequence[float | None]) -> float | None:
    """p of measured ∝ valuesᵖ, by least squares of the logarithms over the upper half; None below two points.

    The lower half is left out because overheads that do not grow would flatten the slope.
    """
    points = [(math.log(v), math.log(m)) for v, m in zip(values, measured, strict=True) if m]
    points = points[-max(2, math.ceil(len(points) / 2)) :]
    if len(points) < 2:
        return None
    x_mean = sum(x for x, _ in points) / len(points)
    y_mean = sum(y for _, y in points) / len(points)
    covariance = sum((x - x_mean) * (y - y_mean) for x, y in points)
    return covariance / sum((x - x_mean) ** 2 for x, _ in points)

"""Operators and losses beside their peers: checked, then timed; one row a case.

A row: `case`, `operator`, `dtype`, `backend`, `tolerance`, `least_bytes` (what `align` must move), and `runs` by name
(`ours`, the peers, `products`). A run holds `median_ms`, `q1_ms`, `q3_ms`, `rounds`, `first_call_ms` (compilation),
`extra_bytes` (peak memory beside operands and gradients; null: not measured) and `error`; or only `missing` (its
package is not installed), `failed` (a peer's exception) or `wrong` (its error, which is over its tolerance). `ratios`
follow from these, `met` from `ratios` and `targets`: see `Case`.
"""

from collections.abc import Callable
from typing import Any

import torch

from amcl_fast import ops

from .. import memory
from ..cases import PRODUCTS, Case, Operands
from ..check import Oracle, WrongResult
from ..peers import NotInstalled, beside, implementation, products
from ..step import gradient_bytes, step_of
from ..timing import interleaved, once

# Targets that bound a ratio from above; all others from below.
_AT_MOST = (PRODUCTS, "gib")


def measure(case: Case, device: str, backend: str, seconds: float, bandwidth: float | None = None) -> dict[str, Any]:
    """The row of one case.

    Args:
        case: what to measure.
        device: `cpu` or `cuda`.
        backend: of our implementation, as in `amcl_fast.ops`.
        seconds: time for the rounds.
        bandwidth: bytes per second of a copy on the device, for the cases that move memory.

    Raises:
        WrongResult: our error is over the tolerance.
        ValueError, RuntimeError: the backend does not take this device or dtype, or is not available.
    """
    dtype = case.dtype_on(device)
    oracle = Oracle(case, device, dtype)
    large = case.operations > 1e12
    sets = [case.operands(device, dtype, seed) for seed in range(1 if large else 3)]
    runs: dict[str, dict[str, Any]] = {}
    steps: dict[str, Callable[[], object]] = {}
    for name in ("ours", *(peer.name for peer in beside(case, device))):
        try:
            run = implementation(backend if name == "ours" else name, case)
        except NotInstalled as missing:
            runs[name] = {"missing": str(missing)}
            continue
        step = step_of(run, sets)
        try:
            first = once(step, device)
            error = oracle.error(run)
        except Exception as failure:  # of a peer; ours must run
            if name == "ours":
                raise
            runs[name] = {"failed": f"{type(failure).__name__}: {failure}"[:200]}
            continue
        if name == "ours" and error > oracle.tolerance:
            raise WrongResult(
                f"{case.name}: relative error {error:.1e}, tolerance {oracle.tolerance:.1e}; it was not timed"
            )
        if name != "ours" and error > oracle.allows(name):
            runs[name] = {"wrong": error}
            continue
        runs[name] = {"first_call_ms": first, "error": error, "extra_bytes": None}
        steps[name] = step
    for name in steps:
        runs[name]["extra_bytes"] = _memory(case, name, backend, device, steps[name], sets[0])
    if PRODUCTS in case.peers:
        steps[PRODUCTS] = products(case, sets[0])
        runs[PRODUCTS] = {}
    for name, timing in interleaved(steps, seconds, device).items():
        runs[name] |= timing
    row = {
        "case": case.name,
        "operator": case.operator,
        "dtype": str(dtype).removeprefix("torch."),
        "backend": ops.resolve(backend, sets[0][0]),  # type: ignore[arg-type]
        "tolerance": oracle.tolerance,
        "least_bytes": least_bytes(case, sets[0]),
        "runs": runs,
    }
    row["ratios"] = ratios(row, bandwidth)
    row["targets"] = case.targets.get(device, {})
    row["met"] = verdicts(row)
    return row


def ratios(row: dict[str, Any], bandwidth: float | None) -> dict[str, float]:
    """Speed-up over each peer, and what else `Case.targets` can ask for."""
    runs, found = row["runs"], {}
    ours = runs["ours"]
    for name, run in runs.items():
        if name != "ours" and "median_ms" in run:
            found[name] = run["median_ms"] / ours["median_ms"]
    if PRODUCTS in found:
        found[PRODUCTS] = 1 / found[PRODUCTS]
    if ours["extra_bytes"] is not None:
        found["gib"] = ours["extra_bytes"] / 2**30
        if (dense := runs.get("dense", {}).get("extra_bytes")) is not None:
            found["memory"] = dense / max(ours["extra_bytes"], 1)
    if bandwidth and row["least_bytes"]:
        found["bandwidth"] = row["least_bytes"] / (ours["median_ms"] / 1e3) / bandwidth
    return found


def verdicts(row: dict[str, Any]) -> dict[str, bool]:
    """Whether each target is met; one that was not measured is not."""
    met = {}
    for name, target in row["targets"].items():
        ratio = row["ratios"].get(name)
        met[name] = ratio is not None and (ratio <= target if name in _AT_MOST else ratio >= target)
    return met


def least_bytes(case: Case, operands: Operands) -> int | None:
    """What `align` must move: all inputs twice (forward and backward), each gradient once; None for the others."""
    if case.operator != "align":
        return None
    tables = [t for t in operands[:4] if t is not None]
    return sum(t.nbytes * (3 if t.requires_grad else 2) for t in tables)


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a large copy on the GPU."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    timing = interleaved({"copy": lambda: target.copy_(source)}, 0.5, "cuda")["copy"]
    return 2 * source.numel() / (timing["median_ms"] / 1e3)


def _memory(
    case: Case, name: str, backend: str, device: str, step: Callable[[], object], operands: Operands
) -> int | None:
    if device == "cpu":
        return memory.in_fresh_process(case, backend if name == "ours" else name)
    measured = memory.extra_bytes(step, device)
    return None if measured is None else max(0, measured - gradient_bytes(operands))

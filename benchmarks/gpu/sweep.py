"""Other launch parameters than the launchers choose, timed; what wins becomes kernels/tuned/<device>.json.

A row of a variant: `sweep`, `table`, `parameters` (what differs from the launchers' choice; empty: nothing), `us` by
kernel, a step, and `difference`, the relative one of result and gradients from those of the launchers' choice; or
`failed`. The last row of a sweep holds `winner` instead of `parameters` (null: the launchers' choice stays), `keys` (of
the table, that were asked for), `us` and `default_us` (medians of several), `error` against float64 with
its `tolerance`, `compiled` (registers, bytes of stack, warps and bytes of shared memory by kernel) and `variants`, how
many of how many were measured.
"""

import contextlib
import datetime as dt
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch

from amcl_fast.kernels import tuning
from amcl_fast.runs.files import write_file

from .. import results
from ..cases import Case, named
from ..check import FLOOR, Oracle, relative_error
from ..peers import implementation
from . import device
from .breakdown import short, step_of_case
from .workers import told

Parameters = dict[str, int]
# A winner is faster by more than this: what two measurements of the same thing may differ by.
NOISE = 0.03
# Rounds in which the fastest variants and the launchers' choice are measured once more, in turn; medians of all.
_ROUNDS, _FINALISTS = 2, 2


@dataclass(frozen=True)
class Sweep:
    """One table of `kernels.tuning`, and what is tried in it.

    Attributes:
        name: what the output calls it.
        table: `module.name`, as the launcher asks for it.
        case: name of the case that is timed.
        kernels: names of the kernels whose time counts; none: all of the step.
        variants: what to try, the launchers' choice ({}) first.
    """

    name: str
    table: str
    case: str
    kernels: tuple[str, ...]
    variants: tuple[Parameters, ...]


def _grid(**choices: tuple[int, ...]) -> Iterator[Parameters]:
    return (dict(zip(choices, values, strict=True)) for values in product(*choices.values()))


def _tiles(shapes: tuple[tuple[int, int, int], ...], **others: tuple[int, ...]) -> tuple[Parameters, ...]:
    """(M, N, warps) with all combinations of the others; 0 for a parameter that is not given."""
    found = [
        {"M": m, "N": n, "num_warps": warps, **{k: v for k, v in rest.items() if v}}
        for (m, n, warps), rest in product(shapes, list(_grid(**others)))
    ]
    return ({}, *found)


_SIMILARITIES = _tiles(((128, 64, 8), (64, 64, 4), (128, 128, 8), (128, 64, 4)), num_stages=(2, 3), maxnreg=(0, 128))
_FEW_ROWS = _tiles(((128, 64, 8), (64, 64, 4), (128, 128, 8), (128, 64, 4)), num_stages=(3,), maxnreg=(0, 128))
_SUMS = ({}, *_grid(BLOCK=(8, 16, 32), num_warps=(1, 2, 4)))
_COLUMNS = ({}, *_grid(COLUMNS=(8, 16, 32), BLOCK=(8, 16, 32), num_warps=(1, 2)))
_ROWS = ({}, *_grid(ROWS=(1, 2, 4, 8), num_warps=(1, 2, 4)))
_FORWARD = _tiles(((128, 32, 8), (128, 64, 8), (64, 64, 4), (64, 32, 4), (64, 64, 8)), num_stages=(2, 3))
_GRADIENT = _tiles(((128, 32, 8), (128, 16, 8), (64, 32, 4), (64, 64, 4), (64, 64, 8), (128, 64, 8)), num_stages=(2, 3))
_CONSTANT = _tiles(((128, 64, 8), (128, 128, 8), (64, 64, 4), (64, 128, 4), (128, 64, 4)), num_stages=(2, 3, 4))
_ELEMENTS = (
    {},
    *(
        {"BLOCK": block, "M": rows, "num_warps": warps, **limit}
        for block, rows, warps in ((2048, 1, 4), (2048, 2, 8), (2048, 1, 16), (1024, 1, 4), (1024, 2, 8), (1024, 4, 16))
        for limit in ({}, {"maxnreg": 64 if warps == 16 else 255 if warps == 4 else 168})
    ),
)
_STRIPS = ({}, *_grid(ROWS=(512, 1024, 2048), COLUMNS=(1024, 2048, 4096, 8192)))

_TOPK = "SimCLR, N = 4096, one table"
_ALL = "SimCLR, N = 4096, softmax over all, one table"
_NT_XENT = "NT-Xent, N = 4096, one table"
_BARLOW = "Barlow Twins, d = 8192, N = 1024"
_MOCO = "MoCo, N = 256, queue 65,536"

SWEEPS = (
    Sweep("similarities", "select.similarities", _TOPK, ("_select_maxima", "_select_bits"), _SIMILARITIES),
    Sweep("similarities of a queue", "select.similarities", _MOCO, ("_select_maxima", "_select_bits"), _FEW_ROWS),
    Sweep("bounds", "select.bounds", _TOPK, ("_select_bounds",), _ROWS),
    Sweep("lists", "select.lists", _TOPK, ("_select_lists",), _ROWS),
    Sweep("pick", "select.pick", _TOPK, ("_select_pick",), _ROWS),
    Sweep("sums", "topk.sums", _TOPK, ("_topk_sums",), _SUMS),
    Sweep("sums of a queue's columns", "topk.columns", _MOCO, ("_topk_few_sums",), _COLUMNS),
    Sweep("scores", "topk.scores", _TOPK, ("_topk_scores",), _SUMS),
    Sweep("all, forward", "dense.forward", _ALL, ("_dense_forward",), _FORWARD),
    Sweep("all, gradient", "dense.gradient", _ALL, ("_dense_gradient",), _GRADIENT),
    Sweep("all, constant, forward", "dense.forward", _NT_XENT, ("_dense_forward",), _CONSTANT),
    Sweep("all, constant, gradient", "dense.gradient", _NT_XENT, ("_dense_gradient",), _CONSTANT),
    Sweep("elements", "decorrelate.elements", _BARLOW, ("_decorrelate_elements",), _ELEMENTS),
    Sweep("strips", "decorrelate.strips", _BARLOW, (), _STRIPS),
)


def compilations() -> dict[str, Callable[[], object]]:
    """By name, what compiles the kernels of one variant."""
    return {
        f"{sweep.name} {parameters}": lambda sweep=sweep, parameters=parameters: _once(sweep, parameters)  # type: ignore[misc]
        for sweep in SWEEPS
        for parameters in sweep.variants
    }


def rows(
    sweep: Sweep, folder: Path, until: float, before: Sequence[dict[str, Any]] = (), lost: str = ""
) -> Iterator[dict[str, Any]]:
    """A row for each variant, then one about the winner, which is put into the device's file in `folder`.

    Args:
        sweep: what to try.
        folder: of the tuned tables.
        until: time.monotonic() after which no further variant is tried.
        before: rows that a process has measured which the next variant has ended; it goes on after that one.
        lost: how that process ended; empty: there was none.

    Raises:
        ValueError: the device's file is damaged, which is told before anything is measured.
        RuntimeError: the process before ended when all variants were measured.
    """
    tuning.read(_device(folder)[1])
    case = device.sized(named(sweep.case))
    measured: list[dict[str, Any]] = list(before)
    expected: list[torch.Tensor] = []
    keys: list[str] = []
    row: dict[str, Any]
    if lost:
        if len(measured) == len(sweep.variants):
            raise RuntimeError(f"when the winner was looked for, {lost}")
        with tuning.trying(sweep.table, {}) as asked:
            expected = [t for t in step_of_case(case, "ours")() if t is not None]
            keys = list(asked)
        row = {"sweep": sweep.name, "table": sweep.table, "parameters": sweep.variants[len(measured)], "failed": lost}
        measured.append(row)
        yield row
    for parameters in sweep.variants[len(measured) :]:
        if measured and time.monotonic() > until:
            break
        row = {"sweep": sweep.name, "table": sweep.table, "parameters": parameters}
        try:
            with tuning.trying(sweep.table, parameters) as asked, device.compiled() as compiled:
                step = step_of_case(case, "ours")
                found = [t for t in step() if t is not None]
                expected = expected or found
                row["us"] = _times(step, sweep)
            row["difference"] = relative_error(found, [t.double() for t in expected])
            row["compiled"] = {name: of for name, of in compiled.items() if name in (sweep.kernels or compiled)}
            keys = keys or list(asked)
            if not keys:
                raise LookupError(f"no launcher of {sweep.case!r} asks for the table {sweep.table!r}")
        except Exception as failure:
            if not parameters:
                raise
            row["failed"] = told(failure)
            device.settle()
        device.release()
        measured.append(row)
        yield row
    yield _decided(sweep, case, keys, measured, folder)


def _decided(sweep: Sweep, case: Case, keys: list[str], measured: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """The last row; the device's file has the winner when it is there."""
    dtype = case.dtype_on("cuda")
    usable = [row for row in measured if "us" in row and row["difference"] <= FLOOR[dtype]]
    first, *others = usable
    faster = [row for row in others if _sum(row) < _sum(first)]
    finalists = [first, *sorted(faster, key=_sum)[:_FINALISTS]]
    times = [[_sum(row)] for row in finalists]
    for _ in range(_ROUNDS if faster else 0):
        for row, of_row in zip(finalists, times, strict=True):
            with tuning.trying(sweep.table, row["parameters"]):
                of_row.append(sum(_times(step_of_case(case, "ours"), sweep).values()))
    default, *challengers = (median(of_row) for of_row in times)
    found: dict[str, Any] = {
        "sweep": sweep.name, "table": sweep.table, "winner": None, "keys": keys, "default_us": default,
        "variants": [len(measured), len(sweep.variants)],
    }  # fmt: skip
    for us, row in sorted(zip(challengers, finalists[1:], strict=True), key=lambda pair: pair[0]):
        if us > (1 - NOISE) * default:
            break
        with tuning.trying(sweep.table, row["parameters"]):
            oracle = Oracle(case, device.KIND, dtype)
            error = oracle.error(implementation(device.BACKEND, case))
        if error <= oracle.tolerance:
            found |= {"winner": row["parameters"], "us": us, "error": error, "tolerance": oracle.tolerance}
            found["compiled"] = row["compiled"]
            break
    write(folder, found)
    return found


def write(folder: Path, found: dict[str, Any]) -> None:
    """Put a sweep's winner into the device's file, or take out what an earlier one has put there.

    Beside the tables, `measured` has for each key that was swept the sweep, its commit and what its last row says.

    The file is replaced whole: launchers in other processes read it meanwhile.

    Raises:
        ValueError: another sweep of this commit was of the same key, and would lose its winner; or the file is damaged.
    """
    name, path = _device(folder)
    document = tuning.read(path)
    tables, measured = document.get("tables", {}), document.get("measured", {})
    commit = results.commit()
    of_table, about_table = tables.pop(found["table"], {}), measured.setdefault(found["table"], {})
    for key in found["keys"]:
        other = about_table.get(key, {})
        if other.get("commit") == commit and other["sweep"] != found["sweep"]:
            raise ValueError(f"the sweeps {other['sweep']!r} and {found['sweep']!r} are of one key, {key!r}")
        about = {name: value for name, value in found.items() if name not in ("table", "keys", "winner")}
        about_table[key] = about | {"commit": commit}
        of_table.pop(key, None)
        if found["winner"]:
            of_table[key] = found["winner"]
    if of_table:
        tables[found["table"]] = of_table
    document = {
        "device": name, "capability": device.capability(), "commit": commit,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), "tables": tables, "measured": measured,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def _device(folder: Path) -> tuple[str, Path]:
    """The device's name and its file."""
    name = tuning.device_name(torch.empty(0, device=device.KIND))
    return name, tuning.path_of(name, folder)


def line(row: dict[str, Any]) -> str:
    """What the last row of a sweep says; of the others, nothing."""
    if "winner" not in row:
        return ""
    done, all_ = row["variants"]
    verdict = f"{row['winner']}: {row['us']:.1f} us" if row["winner"] else "as chosen"
    cut = "" if done == all_ else f", {done} of {all_} variants, the time was up"
    return f"{row['sweep']}: {verdict}; chosen without the table {row['default_us']:.1f} us{cut}"


def _times(step: Callable[[], object], sweep: Sweep) -> dict[str, float]:
    times: dict[str, float] = {}
    for kernel in device.kernels(step):
        name = short(kernel["name"])
        times[name] = times.get(name, 0.0) + kernel["us"]
    return {name: times[name] for name in sweep.kernels} if sweep.kernels else {"all": sum(times.values())}


def _sum(row: dict[str, Any]) -> float:
    return sum(row["us"].values())


def _once(sweep: Sweep, parameters: Parameters) -> None:
    # What does not compile is told when it is timed.
    with contextlib.suppress(Exception), tuning.trying(sweep.table, parameters):
        step_of_case(device.sized(named(sweep.case)), "ours")()
        device.settle()

"""Other launch parameters of the kernels than their launchers choose, timed on the GPU at hand.

A row: `sweep`, `parameters` (what differs from the launchers' choice; empty: nothing), `us` by kernel, a step, and
`error`, the relative difference of result and gradients from those of the launchers' choice; or `failed`.
"""

import contextlib
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any
from unittest import mock

import torch
from amcl_fast.kernels import decorrelate, dense, gathered, select

from .breakdown import break_down, step_of_case, told
from .cases import CASES
from .check import relative_error

Parameters = dict[str, int]


@dataclass(frozen=True)
class Sweep:
    """One table of launch parameters.

    Attributes:
        name: what the output calls it.
        case: name of the case that is timed.
        owner, function: module and name of the launcher's table, which is replaced.
        kernels: names of the kernels whose time counts.
        variants: what to put into the table.
        only: keyword arguments with which the table is asked for what is swept; all others are left alone.
    """

    name: str
    case: str
    owner: Any
    function: str
    kernels: tuple[str, ...]
    variants: tuple[Parameters, ...]
    only: tuple[tuple[str, object], ...] = ()

    @contextlib.contextmanager
    def applied(self, parameters: Parameters) -> Iterator[None]:
        """The launchers' table with `parameters` in it."""
        original = getattr(self.owner, self.function)

        def changed(*args: Any, **kwargs: Any) -> dict[str, Any]:
            found = original(*args, **kwargs)
            return {**found, **parameters} if all(kwargs.get(k) == v for k, v in self.only) else found

        with mock.patch.object(self.owner, self.function, changed):
            yield


def _grid(**choices: tuple[int, ...]) -> Iterator[Parameters]:
    return (dict(zip(choices, values, strict=True)) for values in product(*choices.values()))


def _tiles(shapes: tuple[tuple[int, int, int], ...], **others: tuple[int, ...]) -> tuple[Parameters, ...]:
    """(M, N, warps) with all combinations of the others; 0 for a parameter that is not given."""
    found = [
        {"M": m, "N": n, "num_warps": warps, **{k: v for k, v in rest.items() if v}}
        for (m, n, warps), rest in product(shapes, list(_grid(**others)))
    ]
    return ({}, *found)


_SIMILARITIES = _tiles(((128, 64, 8), (64, 64, 4), (128, 128, 8), (128, 64, 4)), num_stages=(2, 3, 4), maxnreg=(0, 128))
_SUMS = ({}, *_grid(BLOCK=(8, 16, 32), num_warps=(1, 2, 4)))
_FORWARD = _tiles(((128, 32, 8), (128, 64, 8), (64, 64, 4), (64, 32, 4), (64, 64, 8)), num_stages=(2, 3))
_GRADIENT = _tiles(((128, 32, 8), (128, 16, 8), (64, 32, 4), (64, 64, 4), (64, 64, 8), (128, 64, 8)), num_stages=(2, 3))
_CONSTANT = _tiles(((128, 64, 8), (128, 128, 8), (64, 64, 4), (64, 128, 4), (128, 64, 4)), num_stages=(2, 3, 4))
_ELEMENTS = (
    {},
    *({"BLOCK": block, "M": m, "num_warps": warps} for block, m, warps in (
        (2048, 1, 4), (2048, 2, 8), (2048, 2, 16), (1024, 1, 4), (1024, 2, 8), (2048, 1, 16)
    )),
)  # fmt: skip

_ALL = "SimCLR, N = 4096, softmax over all"
_NT_XENT = "NT-Xent, N = 4096"
_BARLOW = "Barlow Twins, d = 8192, N = 1024"
_MOCO = "MoCo, N = 256, queue 65,536"
_SELECT = ("_maxima", "_bounds", "_survivors")

SWEEPS = (
    Sweep("similarities", "SimCLR, N = 4096", select, "similarity_tiling", _SELECT, _SIMILARITIES),
    Sweep("weighted sums", "SimCLR, N = 4096", gathered, "_tiling", ("_weighted_sums", "_scores"), _SUMS),
    Sweep("weighted sums, queue", _MOCO, gathered, "_tiling", ("_weighted_sums", "_scores"), _SUMS),
    Sweep("all, forward", _ALL, dense, "_forward_tiling", ("_forward",), _FORWARD),
    Sweep("all, gradient", _ALL, dense, "_gradient_tiling", ("_gradient",), _GRADIENT),
    Sweep("all, constant, forward", _NT_XENT, dense, "_forward_tiling", ("_forward",), _CONSTANT),
    Sweep("all, constant, gradient", _NT_XENT, dense, "_gradient_tiling", ("_gradient",), _CONSTANT),
    Sweep("correlations", _BARLOW, decorrelate, "_launch", ("_elements",), _ELEMENTS),
)


def rows(jobs: int) -> Iterator[dict[str, Any]]:
    """A row for each variant of each sweep; all are compiled first, in `jobs` processes side by side."""
    tasks = [(number, variant) for number, sweep in enumerate(SWEEPS) for variant in range(len(sweep.variants))]
    if jobs > 1:
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            list(pool.map(_compile, tasks))
    for sweep in SWEEPS:
        expected: list[torch.Tensor] = []
        for parameters in sweep.variants:
            row: dict[str, Any] = {"sweep": sweep.name, "parameters": parameters}
            try:
                with sweep.applied(parameters):
                    step = step_of_case(_case(sweep), "ours")
                    found = [t for t in step() if t is not None]
                    expected = expected or found
                    times = {kernel["name"]: kernel["us"] for kernel in break_down(step, times=False)["kernels"]}
                row["us"] = {name: times[name] for name in sweep.kernels}
                row["error"] = relative_error(found, [t.double() for t in expected])
            except Exception as failure:
                row["failed"] = told(failure)
            torch.cuda.empty_cache()
            yield row


def table(found: list[dict[str, Any]], most: int = 5) -> str:
    """The launchers' choice and the fastest variants of each sweep."""
    lines = []
    for sweep in SWEEPS:
        measured = [row for row in found if row["sweep"] == sweep.name and "us" in row]
        failed = [row for row in found if row["sweep"] == sweep.name and "failed" in row]
        lines.append(f"{sweep.name}: {len(measured)} variants, {len(failed)} do not run")
        chosen = [row for row in measured if not row["parameters"]]
        for row in chosen + sorted(measured, key=lambda row: sum(row["us"].values()))[:most]:
            times = ", ".join(f"{name} {us:.1f} us" for name, us in row["us"].items())
            lines.append(f"    {times}  {row['parameters'] or 'as chosen'}  (difference {row['error']:.1e})")
    return "\n".join(lines)


def _case(sweep: Sweep) -> Any:
    return next(case for case in CASES if case.name == sweep.case)


def _compile(task: tuple[int, int]) -> None:
    number, variant = task
    sweep = SWEEPS[number]
    # What does not compile is told when it is timed.
    with contextlib.suppress(Exception), sweep.applied(sweep.variants[variant]):
        step_of_case(_case(sweep), "ours")()
        torch.cuda.synchronize()
    torch.cuda.empty_cache()

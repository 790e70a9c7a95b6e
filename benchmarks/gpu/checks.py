"""What the kernels are checked with on a GPU: against float64, and the same bits in two runs.

A row: `case`, `error`, `tolerance`, `same_twice`; of a check that has no float64 to compare with, `case` and `found`.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ..cases import Case, Operands, named
from ..check import Oracle, WrongResult, evaluate
from ..peers import implementation
from . import device

DTYPES = (torch.bfloat16, torch.float32, torch.float16)
Check = Callable[[], Iterator[dict[str, Any]]]
_SETTINGS: dict[str, Any] = {"tau_min": 0.05, "tau_max": 2.0, "beta": 1e-3}


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


class EqualRows(Case):
    """A case whose anchors and candidates are all the same row: a collapsed network, or a queue of equal keys."""

    def operands(self, device: str, dtype: torch.dtype, seed: int = 0, *, on_grid: bool = False) -> Operands:
        """As `Case.operands`."""
        tensors = super().operands(device, dtype, seed, on_grid=on_grid)
        row = None if tensors[0] is None else tensors[0].detach()[:, :1]
        for place, table in enumerate(tensors[:2]):
            assert table is not None and row is not None
            tensors[place] = row.expand_as(table).contiguous().requires_grad_(self.gradients[place])
        return tensors


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
    """Offsets, strides, one table, many equal candidates, and κ beyond what is put in order."""
    cases: list[Case] = []
    form: dict[str, Any]
    for negatives, top_k in (("topk_mean", 20), ("topk_softmax", 1100), ("softmax", None)):
        form = _SETTINGS | {"negatives": negatives, "top_k": top_k}
        cases.append(UnusualCase(f"unusual {negatives} {top_k}", "contrast", 2, 70, 1300, 80, form))
    form = _SETTINGS | {"negatives": "topk_softmax", "top_k": 20}
    cases.append(UnusualCase("unusual SimCLR", "contrast", 2, 70, 0, 80, form))
    # 1/τ of up to 1e5, where a bit of s or of τ decides; and rows among which every similarity is a tie.
    for negatives, top_k in (("topk_mean", 20), ("topk_softmax", 20), ("softmax", None)):
        form = _SETTINGS | {"negatives": negatives, "top_k": top_k}
        least = form | {"tau_min": 1e-5}
        cases.append(Case(f"τ from 1e-5, {negatives} {top_k}", "contrast", 2, 190, 0, 80, least))
        cases.append(EqualRows(f"equal rows, {negatives} {top_k}", "contrast", 2, 190, 0, 80, form))
        cases.append(Case(f"one table, {negatives} {top_k}", "contrast", 2, 190, 0, 80, form, shared=True))
        perplexity = least | {"beta": 0.0, "perplexity": 0.25}
        cases.append(Case(f"perplexity, {negatives} {top_k}", "contrast", 2, 190, 1111, 80, perplexity))
        cases.append(
            Case(f"perplexity of one table, {negatives} {top_k}", "contrast", 2, 190, 0, 80, perplexity, shared=True)
        )
    cases.append(UnusualCase("unusual align", "align", 2, 77, 0, 300, _SETTINGS | {"weight": 0.5}))
    cases.append(UnusualCase("unusual decorrelate", "decorrelate", 2, 190, 0, 70, _SETTINGS | {"lambd": 5e-3}))
    return cases


def whole_cases() -> list[Case]:
    """Whole losses at ragged sizes: one table in SimCLR, MoCo's transposed queue."""
    simclr, moco = named("Whole loss: AMCL-SimCLR, N = 512, InfoNCE"), named(_MOCO)
    hard = simclr.settings | {"negatives": "topk_softmax", "top_k": 20}
    return [
        replace(simclr, name="whole SimCLR, softmax", rows=190, width=80),
        replace(simclr, name="whole SimCLR, topk_softmax 20", rows=190, width=80, settings=hard),
        replace(moco, name="whole MoCo, transposed queue", rows=154, candidates=1111, width=80),
    ]


def all_checks() -> dict[str, Check]:
    """Every check by its name. The other dtypes at one width: each width costs its own compilations."""
    cases: list[tuple[Case, tuple[torch.dtype, ...]]] = [
        (case, DTYPES if case.width in (70, 80) else DTYPES[:1]) for case in small_cases()
    ]
    cases += [(case, DTYPES) for case in unusual_cases() + whole_cases()]
    return {name: check for case, dtypes in cases for dtype in dtypes for name, check in _checks(case, dtype)} | _nan()


def smoke() -> dict[str, Check]:
    """The checks that would show most of what can be wrong, in half a minute."""
    return {name: check for case, dtype in _smoke_cases() for name, check in _checks(case, dtype)} | _nan()


def compilations() -> dict[str, Callable[[], object]]:
    """By name, what compiles the kernels of each smoke check."""
    found: dict[str, Callable[[], object]] = {
        _name(case, dtype): partial(_once, device.sized(case), dtype) for case, dtype in _smoke_cases()
    }
    return found | {name: lambda check=check: list(check()) for name, check in _nan().items()}  # type: ignore[misc]


def _smoke_cases() -> list[tuple[Case, torch.dtype]]:
    cases = {case.name: case for case in small_cases() + unusual_cases() + whole_cases()}
    bfloat16, float32, float16 = DTYPES
    form = cases["one table, topk_mean 20"].settings
    return [
        (cases["topk_mean 20, 190 candidates, d = 80, τ ≤ 2.0"], bfloat16),
        (cases["τ from 1e-5, topk_softmax 20"], bfloat16),
        (cases["τ from 1e-5, softmax None"], float32),
        (cases["equal rows, topk_softmax 20"], bfloat16),
        (EqualRows("queue of equal keys", "contrast", 2, 70, 5000, 80, form), bfloat16),
        (cases["whole MoCo, transposed queue"], bfloat16),
        (cases["whole SimCLR, topk_softmax 20"], bfloat16),
        (cases["one table, softmax None"], bfloat16),
        (cases["one table, topk_softmax 20"], float32),
        (cases["topk_softmax 100, 1111 candidates, d = 33, τ ≤ 2.0"], float16),
        (cases["unusual topk_softmax 1100"], bfloat16),
        (cases["perplexity, softmax None"], bfloat16),
        (cases["perplexity of one table, topk_softmax 20"], bfloat16),
        (cases["perplexity of one table, softmax None"], float32),
        (cases["unusual align"], float16),
        (cases["unusual decorrelate"], float16),
        (named("SimCLR, N = 4096"), bfloat16),
        (named("MoCo, N = 256, queue 65,536"), bfloat16),
        (named("Barlow Twins, d = 8192, N = 1024"), bfloat16),
    ]


def _once(case: Case, dtype: torch.dtype) -> None:
    evaluate(implementation(device.BACKEND, case), case.operands(device.KIND, dtype))


def check(case: Case, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """The row of one case.

    Raises:
        WrongResult: after the row: the error is over its tolerance, or two runs differ in a bit.
    """
    oracle, run = Oracle(case, device.KIND, dtype), implementation(device.BACKEND, case)
    first, second = oracle.evaluate(run), oracle.evaluate(run)
    error = oracle.error_of(first)
    pairs = [pair for both in zip(first, second, strict=True) for pair in zip(*both, strict=True)]
    same = all(torch.equal(a, b) for a, b in pairs)
    yield {"case": _name(case, dtype), "error": error, "tolerance": oracle.tolerance, "same_twice": same}
    if not error <= oracle.tolerance:
        raise WrongResult(f"relative error {error:.2e}, tolerance {oracle.tolerance:.2e}")
    if not same:
        raise WrongResult("two runs differ")


def nan_is_visible(case: Case, dtype: torch.dtype, place: int) -> Iterator[dict[str, Any]]:
    """One NaN in the table at `place` must make the result NaN: an anchor's its own row, a candidate's every row.

    Raises:
        WrongResult: after the row, if it does not, or if it shows in another head.
    """
    operands = case.operands(device.KIND, dtype)
    table = operands[place]
    assert table is not None
    with torch.no_grad():
        table[0, 3, 0] = float("nan")
        nan = implementation(device.BACKEND, case)(*operands).isnan()
    own = nan[0] if (place and case.operator == "contrast") or nan.ndim == 1 else nan[0, 3]
    seen, elsewhere = bool(own.all()), bool(nan[1:].any())
    yield {"case": _nan_name(case, dtype, place), "found": "NaN" if seen else "a number"}
    if not seen or elsewhere:
        raise WrongResult(f"a NaN in the first head shows {'in another' if seen else 'nowhere'}")


_MOCO = "Whole loss: AMCL-MoCo, N = 256, queue 65,536"


def _name(case: Case, dtype: torch.dtype) -> str:
    return f"{case.name}, {str(dtype).removeprefix('torch.')}"


def _checks(case: Case, dtype: torch.dtype) -> Iterator[tuple[str, Check]]:
    yield _name(case, dtype), partial(check, device.sized(case), dtype)


def _nan() -> dict[str, Check]:
    cases = {case.name: case for case in small_cases()}
    found: dict[str, Check] = {}
    for name, place in (
        ("topk_softmax 100, 1111 candidates, d = 33, τ ≤ 2.0", 0),
        ("topk_softmax 100, 1111 candidates, d = 33, τ ≤ 2.0", 1),
        ("softmax None, 190 candidates, d = 80, τ ≤ 2.0", 0),
        ("softmax None, 1111 candidates, d = 33, τ ≤ 2.0", 1),
        ("align, τ ≤ 2.0", 0),
        ("decorrelate, τ ≤ 2.0", 1),
    ):
        case, dtype = device.sized(cases[name]), DTYPES[0]
        check = partial(nan_is_visible, case, dtype, place)
        found[_nan_name(case, dtype, place)] = check
    return found


def _nan_name(case: Case, dtype: torch.dtype, place: int) -> str:
    return f"{_name(case, dtype)}, NaN in {'xy'[place]}"

"""Whether an implementation computes what it claims, against float64; nothing is timed before this."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .cases import Case, Operands, Run
from .peers import allowance, implementation
from .step import distinct

# What every dtype is granted, ‖found − exact‖ / ‖exact‖, beside three times the error of PyTorch's own arithmetic.
# In half precision the products read rounded factors, and gradients are rounded when they leave.
FLOOR = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
# Similarities that the float64 reference may hold; beyond that a sample of the anchors is checked.
_MOST_SIMILARITIES = {"cpu": 15_000_000, "cuda": 100_000_000}


def evaluate(run: Run, operands: Operands, gradient: Tensor | None = None) -> list[Tensor]:
    """Result and gradients of all leaves.

    Args:
        run: implementation.
        operands: of a case.
        gradient: gradient of the result. None: unequal weights, so that errors do not cancel.
    """
    leaves = _renewed(operands)
    result = run(*leaves)
    if gradient is None:
        gradient = torch.linspace(0.5, 1.5, result.numel(), device=result.device).reshape(result.shape)
    (result * gradient.to(result.dtype)).sum().backward()
    return [result.detach(), *(t.grad for t in distinct(leaves) if t.grad is not None)]


def _renewed(operands: Operands, dtype: torch.dtype | None = None) -> Operands:
    """Leaves of the same values, in `dtype` if one is given; one tensor stays one."""
    new = {
        id(t): t.detach().to(dtype or t.dtype).requires_grad_(t.requires_grad) if t.is_floating_point() else t
        for t in distinct(operands)
    }
    return [None if t is None else new[id(t)] for t in operands]


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest ‖found − expected‖ / ‖expected‖ of the pairs; ∞ for NaN."""
    errors = [
        ((a.double() - b).norm() / b.norm().clamp_min(1e-30)).item() for a, b in zip(found, expected, strict=True)
    ]
    return max(error if error == error else float("inf") for error in errors)


class WrongResult(Exception):
    """Our implementation is not within its tolerance, so it is not timed."""


class Oracle:
    """float64 result and gradients of a case, and the error that its dtype allows.

    Where rows × candidates would not fit into memory in float64, a sample of the anchors has a gradient and the others
    have none: the implementation still runs at full size, and the reference sees the sample alone.

    Attributes:
        tolerance: 3 × the relative error of `amcl_fast.reference` (dense PyTorch) in the case's arithmetic, plus
            `FLOOR`.
    """

    def __init__(self, case: Case, device: str, dtype: torch.dtype) -> None:
        self._case, self._dtype = case, dtype
        self._operands = case.operands(device, dtype, on_grid=True)
        self._rows: Tensor | None = None
        limit = _MOST_SIMILARITIES[device] // (case.heads * case.columns)
        if case.operator == "contrast" and case.rows > limit:
            self._rows = torch.linspace(0, case.rows - 1, max(limit, 16), device=device).long()
        # Half precision is what the factors are given in; the arithmetic after that is float32.
        arithmetic = torch.float32 if dtype.itemsize == 2 else dtype
        reference = implementation("reference", case)
        self._gradients: list[Tensor | None] = [None]
        if self._rows is None:
            # Equal gradients, as a mean over anchors sends them; a backend may have a faster path for these.
            self._gradients.append(torch.ones((), device=device))
        sampled = self._sampled(self._operands)
        exact = _renewed(sampled, torch.float64)
        own = _renewed(sampled, arithmetic)
        self._expected = [self._merged(evaluate(reference, exact, gradient)) for gradient in self._gradients]
        errors = [
            relative_error(self._merged(evaluate(reference, own, gradient)), expected)
            for gradient, expected in zip(self._gradients, self._expected, strict=True)
        ]
        self.tolerance = FLOOR[dtype] + 3 * max(errors)

    def allows(self, name: str) -> float:
        """Relative error of the implementation `name` that is no mistake in it."""
        return max(self.tolerance, allowance(name, self._case, self._dtype))

    def evaluate(self, run: Run) -> list[list[Tensor]]:
        """Result and gradients by `run`, once for each kind of gradient of the result."""
        if self._rows is None:
            return [evaluate(run, self._operands, gradient) for gradient in self._gradients]
        heads, rows = self._operands[0].shape[:2]  # type: ignore[union-attr]
        gradient = torch.zeros(heads, rows, device=self._rows.device)
        gradient[:, self._rows] = torch.linspace(0.5, 1.5, heads * len(self._rows), device=gradient.device).reshape(
            heads, -1
        )
        found = evaluate(run, self._operands, gradient)
        return [[t[:, self._rows] if number in self._by_row else t for number, t in enumerate(found)]]

    def error(self, run: Run) -> float:
        """Largest relative error of `run` over result and gradients."""
        return self.error_of(self.evaluate(run))

    def error_of(self, found: list[list[Tensor]]) -> float:
        """The same of what `evaluate` returned."""
        return max(relative_error(a, b) for a, b in zip(found, self._expected, strict=True))

    @property
    def _by_row(self) -> set[int]:
        """Places in what `evaluate` returns that have a row for each anchor: the result, gradients of x and φ(x)."""
        if self._case.shared:
            return {0}
        given = [place for place, t in enumerate(self._operands[:4]) if t is not None and t.requires_grad]
        return {0} | {1 + number for number, place in enumerate(given) if place in (0, 2)}

    def _merged(self, found: list[Tensor]) -> list[Tensor]:
        """Where anchors are candidates and a sample of them stood apart for the reference: one gradient of both."""
        if self._rows is None or not self._case.shared:
            return found
        result, *gradients = found
        return [result, *(y.index_add(1, self._rows, x) for x, y in zip(gradients[::2], gradients[1::2], strict=True))]

    def _sampled(self, operands: Operands) -> Operands:
        if self._rows is None:
            return operands
        rows = self._rows
        anchors, candidates, phi_anchors, phi_candidates, offset, skip = operands
        return [
            _rows(anchors, rows), candidates, _rows(phi_anchors, rows), phi_candidates, offset,
            None if skip is None else skip[rows],
        ]  # fmt: skip


def _rows(table: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if table is None else table.detach()[:, rows].requires_grad_(table.requires_grad)

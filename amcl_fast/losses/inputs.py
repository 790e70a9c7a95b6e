"""What a loss is given: projections with the heads first, numbers in their range, and nothing that is not finite."""

import math
from typing import Any

from torch import Tensor

from .. import rows
from ..operator_settings import is_number, plain
from ..ops import checks
from ..setting_types import written
from ..temperature import LARGEST_FLOAT32


class NonFiniteInputError(ValueError):
    """An input of a loss is NaN or infinite."""


def heads_first(**inputs: Tensor) -> list[Tensor]:
    """Checked projections, (N, C, d) or (N, d), as (C, N, d)."""
    (first_name, first), *others = inputs.items()
    for name, z in inputs.items():
        checks.floating(name, z)
        if z.dim() not in (2, 3):
            raise ValueError(f"{name} must have shape (N, C, d) or (N, d), got {tuple(z.shape)}")
        if 0 in z.shape[1:]:
            raise ValueError(f"{name} must have at least one head and one channel, got {tuple(z.shape)}")
    for name, z in others:
        if z.shape != first.shape:
            raise ValueError(f"{name} must have the shape of {first_name}, {tuple(first.shape)}, got {tuple(z.shape)}")
        checks.of_one_kind(name, z, first_name, first)
    checks.unnamed(**inputs)
    heads = [z if z.dim() == 3 else z.unsqueeze(1) for z in rows.savable(*inputs.values())]
    return [z.transpose(0, 1) for z in heads]


def queue_rows(queue: Tensor, q: Tensor, like: Tensor) -> Tensor:
    """A checked queue, (C, d, K) or (d, K), as (C, K, d) without gradient, a view; `like` is q as (C, N, d)."""
    checks.of_one_kind("queue", queue, "q", q)
    checks.unnamed(queue=queue)
    (queue,) = rows.savable(queue)
    heads, _, dim = like.shape
    keys = queue.unsqueeze(0) if queue.dim() == 2 else queue
    if keys.dim() != 3 or keys.shape[:2] != (heads, dim) or keys.shape[2] < 1:
        raise ValueError(
            f"queue must have shape (C, d, K) = ({heads}, {dim}, K ≥ 1), or (d, K) for one head, "
            f"got {tuple(queue.shape)}"
        )
    return keys.detach().mT


def number(name: str, value: Any, smallest: float = 0.0, accepted: str = "a float") -> float:
    """A float from `smallest` to what float32, in which most losses are evaluated, can hold; of any kind of number."""
    is_number(name, value, accepted)
    value = plain(value)
    if not smallest <= value <= LARGEST_FLOAT32:
        raise ValueError(f"{name} must be between {smallest:.3g} and {LARGEST_FLOAT32:.3g}, got {written(value)}")
    return float(value)


def finite(loss: Tensor, **inputs: Tensor) -> Tensor:
    """`loss`, unless it is not finite because an input is not."""
    if not rows.may_look(loss) or math.isfinite(loss.detach()):
        return loss
    for name, z in inputs.items():
        if bad := int((~z.detach().isfinite()).sum()):
            raise NonFiniteInputError(
                f"{name} must be finite, got {bad} of {z.numel()} values that are NaN or infinite"
            )
    return loss

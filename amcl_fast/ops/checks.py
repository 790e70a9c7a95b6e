"""What every backend refuses, in the same words: the check of an operator's tensors; `operator_settings` has the rest.

Nothing here reads a value of a tensor that is not on the CPU at hand, so it waits for no device, and all of it may be
traced by torch.compile.
"""

from typing import Any

import torch
from torch import Tensor

from .. import operator_settings, rows
from ..reference import Chosen
from . import backends
from .registration import is_seen


def contrast(
    tensors: tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    tau_min: float,
    tau_max: float,
    negatives: str,
    top_k: int | None,
    beta: float,
    tau: Tensor | None,
    chosen: Chosen | None,
) -> None:
    """The arguments of `ops.contrast`; `tensors` are anchors, …, skip, extra, the first of a dtype that is taken."""
    anchors, candidates, phi_anchors, phi_candidates, offset, skip, extra = tensors
    operator_settings.contrast(anchors, tau_min, tau_max, negatives, top_k, beta, extra, tau)
    heads, count, available = _tables(anchors, candidates)
    _phi(("anchors", anchors, count), ("candidates", phi_anchors, phi_candidates, available), offset)
    if extra is not None:
        _beside("extra", extra, "anchors", anchors)
        _shaped("extra", extra, (heads, count))
    left = _left(skip, anchors, count, available)
    if tau is not None:
        if phi_anchors is not None or offset is not None:
            raise ValueError("phi_anchors and offset must be None with a temperature per anchor, tau, got a tensor")
        _beside("tau", tau, "anchors", anchors)
        _shaped("tau", tau, (heads, count))
    if chosen is not None:
        if negatives == "softmax" or top_k is None:
            raise ValueError("chosen must be None with negatives='softmax', which takes all, got tensors")
        shape = (heads, count, min(top_k, left))
        _beside("chosen.similarities", chosen.similarities, "anchors", anchors)
        _shaped("chosen.similarities", chosen.similarities, shape)
        tensor("chosen.columns", chosen.columns)
        if chosen.columns.dtype != torch.int32:
            raise TypeError(f"chosen.columns must be int32, got {chosen.columns.dtype}")
        _on("chosen.columns", chosen.columns, "anchors", anchors)
        _shaped("chosen.columns", chosen.columns, shape)


def calibrate(
    anchors: Tensor,
    candidates: Tensor,
    skip: Tensor | None,
    tau_min: float,
    tau_max: float,
    negatives: str,
    top_k: int | None,
    perplexity: float,
) -> None:
    """The arguments of `ops.calibrate`, anchors of a dtype that is taken."""
    operator_settings.calibrate(anchors, tau_min, tau_max, negatives, top_k, perplexity)
    _, count, available = _tables(anchors, candidates)
    _left(skip, anchors, count, available)


def _tables(anchors: Tensor, candidates: Tensor) -> tuple[int, int, int]:
    """C, A and B of anchors (C, A, d) and candidates (C, B, d)."""
    heads, count, width = _first("anchors", anchors)
    of_one_kind("candidates", candidates, "anchors", anchors)
    return heads, count, _shaped("candidates", candidates, (heads, None, width))[1]


def _left(skip: Tensor | None, anchors: Tensor, count: int, available: int) -> int:
    """How many negatives every anchor has, of so many candidates."""
    skipped = 0 if skip is None else _skip(skip, anchors, count, available)
    if available <= skipped:
        raise ValueError(
            f"candidates must hold at least one negative, got {available} rows, of which {skipped} are skipped"
        )
    return available - skipped


def paired(
    tensors: tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None],
    tau_min: float,
    tau_max: float,
    **numbers: float,
) -> None:
    """The arguments of `ops.align` and `ops.decorrelate`, x of a dtype that is taken."""
    x, y, phi_x, phi_y, offset = tensors
    operator_settings.numbers(x, tau_min, tau_max, **numbers)
    heads, count, width = _first("x", x)
    of_one_kind("y", y, "x", x)
    _shaped("y", y, (heads, count, width))
    _phi(("x", x, count), ("y", phi_x, phi_y, count), offset)


_FLOATS = backends.TABLE["reference"].dtypes
# Classes of torch whose numbers are elsewhere or not all there, and what holds them.
_ELSEWHERE = {"MaskedTensor": ".get_data()", "DTensor": ".full_tensor()"}


def tensor(name: str, value: Any) -> None:
    """That it is one, with its numbers in strides, which operators read.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    kind = type(value)
    if value.is_nested:
        said = f"got a nested one; torch.stack({name}.unbind()) is one where all its parts have one shape"
    elif value.layout is not torch.strided:
        said = f"got the layout {value.layout}; {name}.to_dense() is one"
    elif kind is not Tensor and kind.__name__ in _ELSEWHERE:
        said = f"got a {kind.__name__}; {name}{_ELSEWHERE[kind.__name__]} is one"
    else:
        return
    raise TypeError(f"{name} must be a dense tensor, {said}")


def floating(name: str, value: Any) -> None:
    """That it is a tensor of a dtype in which there are operators, or which they widen.

    Raises:
        TypeError: it is not.
    """
    tensor(name, value)
    if value.dtype not in _FLOATS:
        raise TypeError(f"{name} must be one of {backends.named(_FLOATS)}, got {value.dtype}")


def table(name: str, value: Any, width: int | None) -> None:
    """That it holds rows of `width` (None: of any), (..., rows, width), in floating point.

    Raises:
        TypeError, ValueError: it does not.
    """
    floating(name, value)
    if value.dim() < 2 or (width is not None and value.shape[-1] != width):
        raise ValueError(f"{name} must have the shape (..., rows, {width or 'd'}), got {tuple(value.shape)}")


def unnamed(**tensors: Tensor) -> None:
    """That dimensions have no names, which few of torch's operators take.

    Raises:
        TypeError: they have.
    """
    if torch.compiler.is_compiling():
        return
    for name, value in tensors.items():
        if value.has_names():
            raise TypeError(f"{name} must have no names, got {value.names}; {name}.rename(None) has none")


def _first(name: str, first: Tensor) -> torch.Size:
    """The shape of the tensor that all others must fit; it may have no rows."""
    if first.dim() != 3 or first.shape[0] < 1 or first.shape[2] < 1:
        raise ValueError(f"{name} must have the shape (C, rows, width) with C, width ≥ 1, got {tuple(first.shape)}")
    return first.shape


def of_one_kind(name: str, value: Tensor, first_name: str, first: Tensor) -> None:
    """That it is a tensor with the dtype of the first, on its device."""
    tensor(name, value)
    if value.dtype != first.dtype:
        raise TypeError(f"{name} must have the dtype of {first_name}, {first.dtype}, got {value.dtype}")
    _on(name, value, first_name, first)


def _beside(name: str, value: Tensor, first_name: str, first: Tensor) -> None:
    """φ, the offset and the extra logit: beside half precision they may be float32 as well."""
    tensor(name, value)
    if value.dtype != first.dtype and (value.dtype != torch.float32 or first.dtype == torch.float64):
        raise TypeError(f"{name} must have the dtype of {first_name}, {first.dtype}, got {value.dtype}")
    _on(name, value, first_name, first)


def _on(name: str, value: Tensor, first_name: str, first: Tensor) -> None:
    if value.device != first.device:
        raise ValueError(f"{name} must be on the device of {first_name}, {first.device}, got {value.device}")


def _phi(
    x: tuple[str, Tensor, int], of_y: tuple[str, Tensor | None, Tensor | None, int], offset: Tensor | None
) -> None:
    """φ of both sides, (C, rows, m) each, and the offset of their product."""
    (x_name, first, x_rows), (y_name, phi_x, phi_y, y_rows) = x, of_y
    if offset is not None:
        _beside("offset", offset, x_name, first)
        if offset.dim() != 0:
            raise ValueError(f"offset must be a 0-dim tensor, got the shape {tuple(offset.shape)}")
    if phi_x is None and phi_y is None:
        return
    names = f"phi_{x_name}", f"phi_{y_name}"
    if phi_x is None or phi_y is None:
        given = names[phi_x is None]
        raise ValueError(f"{names[0]} and {names[1]} must be given both or neither, got {given} alone")
    _beside(names[0], phi_x, x_name, first)
    of_one_kind(names[1], phi_y, names[0], phi_x)
    # Rows may be none, the width of φ may not.
    width = phi_x.shape[-1] if phi_x.dim() == 3 else None
    _shaped(names[0], phi_x, (first.shape[0], x_rows, width))
    _shaped(names[1], phi_y, (first.shape[0], y_rows, width))


def _skip(skip: Tensor, anchors: Tensor, count: int, columns: int) -> int:
    """How many columns every anchor skips."""
    tensor("skip", skip)
    if skip.dtype != torch.int64:
        raise TypeError(f"skip must be int64, got {skip.dtype}")
    _on("skip", skip, "anchors", anchors)
    each = _shaped("skip", skip, (count, None))[1]
    if count and rows.may_look(skip) and not is_seen((skip,)) and not _fits(skip, columns):
        raise ValueError(f"skip must hold columns from 0 to {columns - 1}, got one that does not exist")
    return each


def _fits(skip: Tensor, columns: int) -> bool:
    lowest, highest = skip.aminmax()
    return int(lowest) >= 0 and int(highest) < columns


def _shaped(name: str, value: Tensor, shape: tuple[int | None, ...]) -> torch.Size:
    """The shape, which must be `shape`; None stands for any size but 0."""
    fits = value.dim() == len(shape) and all(
        have == size if size is not None else have > 0 for have, size in zip(value.shape, shape, strict=True)
    )
    if not fits:
        accepted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must have the shape ({accepted}) and not be empty, got {tuple(value.shape)}")
    return value.shape

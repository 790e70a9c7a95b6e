"""What is refused of an operator's settings, in the same words by every backend and by the reference on its own.

All of it may be traced by torch.compile, which takes numbers for symbols with dynamic=True (hence no math.isfinite).
"""

import math
import sys
from numbers import Integral, Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .setting_types import LARGEST_WHOLE, one_of, written

Negatives = Literal["topk_mean", "topk_softmax", "softmax"]
NEGATIVES: tuple[str, ...] = get_args(Negatives)


def contrast(
    anchors: Tensor,
    tau_min: float,
    tau_max: float,
    negatives: str,
    top_k: int | None,
    beta: float,
    extra: Tensor | None,
    tau: Tensor | None = None,
) -> None:
    """The settings of a contrast, and whether its form of the negatives has room for an extra logit.

    Raises:
        ValueError, TypeError: as `numbers` and `selection`, and ValueError for `extra` with topk_mean and β beside τ.
    """
    numbers(anchors, tau_min, tau_max, beta=beta)
    selection(negatives, top_k)
    if extra is not None and negatives == "topk_mean":
        raise ValueError("extra must be None with negatives='topk_mean', which has no log-sum-exp, got a tensor")
    if tau is not None and beta != 0:
        raise ValueError(f"beta must be 0 with a temperature per anchor, tau, got {written(beta)}")


def calibrate(
    anchors: Tensor, tau_min: float, tau_max: float, negatives: str, top_k: int | None, perplexity: float
) -> None:
    """The settings of a calibration.

    Raises:
        ValueError, TypeError: as `numbers` and `selection`, and ValueError for `perplexity` outside (0, 1).
    """
    numbers(anchors, tau_min, tau_max, perplexity=perplexity)
    selection(negatives, top_k)
    if not 0 < perplexity < 1:
        raise ValueError(f"perplexity must be above 0 and below 1, a share of the negatives, got {written(perplexity)}")


def numbers(first: Tensor, tau_min: float, tau_max: float, **more: float) -> None:
    """The range of τ beside the tensor `first`, and further numbers by name.

    Raises:
        TypeError: one of them is no number.
        ValueError: a bound of τ is no normal number of the dtype that τ has, the bounds are out of order, or a further
            number is not finite.
    """
    are_numbers(tau_min=tau_min, tau_max=tau_max, **more)
    tau_min, tau_max = plain(tau_min), plain(tau_max)
    # Half precision is for products: τ is float32 then.
    normal = torch.finfo(torch.float64 if first.dtype == torch.float64 else torch.float32)
    if not normal.tiny <= tau_min <= tau_max <= normal.max:
        raise ValueError(
            f"tau_min and tau_max must be in order from {normal.tiny:.3g} to {normal.max:.3g}, normal numbers of "
            f"{normal.dtype}, got tau_min={written(tau_min)} and tau_max={written(tau_max)}"
        )
    for name, number in more.items():
        if not -sys.float_info.max <= plain(number) <= sys.float_info.max:
            raise ValueError(f"{name} must be finite, got {written(number)}")


def are_numbers(**values: Any) -> None:
    """That each is a real number and no truth value; a tensor is none, for its value would have to be waited for.

    Raises:
        TypeError: one is not.
    """
    for name, value in values.items():
        if type(value) not in (float, int):
            is_number(name, value)


def is_number(name: str, value: Any, accepted: str = "a number") -> None:
    """`are_numbers` of one value."""
    if isinstance(value, bool) or not isinstance(value, (torch.SymInt, torch.SymFloat, Real)):
        is_one = getattr(value, "ndim", None) == 0 and "bool" not in str(getattr(value, "dtype", ""))
        instead = "; its .item() is one" if is_one else ""
        raise TypeError(f"{name} must be {accepted}, got {written(value)}{instead}")


def plain(number: float) -> float:
    """A number as Python has it, of numpy's and others; what torch.compile takes for a symbol stays one."""
    if type(number) in (float, int) or not isinstance(number, Real):
        return number
    try:
        return float(number)
    except OverflowError:  # of a fraction
        return math.inf if number > 0 else -math.inf


def selection(negatives: str, top_k: int | None) -> None:
    """Which negatives of an anchor count.

    Raises:
        ValueError: unknown `negatives`, or top_k below 1.
        TypeError: top_k is no int where it is needed.
    """
    one_of("negatives", negatives, NEGATIVES)
    if negatives == "softmax":
        return
    if type(top_k) is not int and (isinstance(top_k, bool) or not isinstance(top_k, (torch.SymInt, Integral))):
        raise TypeError(f"top_k must be an int with negatives={negatives!r}, got {written(top_k)}")
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {written(top_k)}")
    if top_k > LARGEST_WHOLE:
        raise ValueError(f"top_k must be at most {LARGEST_WHOLE}, got {written(top_k)}")

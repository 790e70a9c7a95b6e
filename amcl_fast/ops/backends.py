"""The backends of the operators: module, status, device and dtypes of each, in one table."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch

from .. import capabilities, reference
from ..capabilities import Status

BackendName = Literal["auto", "triton", "native", "reference"]
NAMES: tuple[str, ...] = get_args(BackendName)


class Backend(NamedTuple):
    """What is known of a backend.

    Attributes:
        module: imports what has the three operators of `amcl_fast.reference`: a machine may have no compiler or no
            Triton.
        status: whether it runs here, or why not.
        device: type of the devices whose tensors it takes; None: any.
        dtypes: of the tensors that it takes; φ, offset and extra logits may be float32 beside half precision.
    """

    module: Callable[[], Any]
    status: Callable[[], Status]
    device: str | None
    dtypes: tuple[torch.dtype, ...]


# Imports as statements, which torch.compile can trace.
def _triton() -> Any:
    from . import triton

    return triton


def _native() -> Any:
    from . import native

    return native


_PLAIN = Status(True, f"plain PyTorch {torch.__version__}, any device")

TABLE = {
    "triton": Backend(
        _triton, lambda: capabilities.triton_status(), "cuda", (torch.float32, torch.bfloat16, torch.float16)
    ),
    "native": Backend(_native, lambda: capabilities.native_status(), "cpu", (torch.float32, torch.float64)),
    "reference": Backend(
        lambda: reference,
        lambda: _PLAIN,
        None,
        (torch.float32, torch.float64, torch.bfloat16, torch.float16),
    ),
}
"""Backends by name; `auto` takes the first that is there and fits."""


def named(dtypes: tuple[torch.dtype, ...]) -> str:
    """As messages and pages write them: float32, float64."""
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)

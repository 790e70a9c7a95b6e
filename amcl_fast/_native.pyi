"""The CPU engine (csrc/). Tensors are addresses, with strides where rows need not touch; 0 or None: none."""

from collections.abc import Sequence

_Rows = tuple[int, int, int] | None
_Sums = tuple[float, float, float, float, float, float]
_Temperature = tuple[float, float, float, float]

class Form:
    topk_mean: Form
    topk_softmax: Form
    softmax: Form

class Contrast:
    def __init__(
        self,
        shape: tuple[int, int, int, int, int, int, int],
        form: Form,
        temperature: _Temperature,
        inputs: Sequence[_Rows],
        skip: int,
        threads: int,
    ) -> None: ...

class Align:
    def __init__(
        self,
        shape: tuple[int, int, int, int],
        temperature: _Temperature,
        weight: float,
        inputs: Sequence[_Rows],
        threads: int,
    ) -> None: ...

ALIGN_FACTORS: int  # numbers that align_forward leaves of each row for align_backward

def instruction_sets() -> list[str]: ...
def use_instruction_set(name: str) -> None: ...
def use_blas(sgemm: int, dgemm: int, set_threads: int) -> None: ...
def contrast_topk_forward(is_double: bool, call: Contrast, values: int, columns: int, ds: int, dr: int) -> _Sums: ...
def contrast_topk_backward(
    is_double: bool,
    call: Contrast,
    upstream: int,
    columns: int,
    ds: int,
    dr: int,
    gradients: Sequence[_Rows],
    offset: int,
) -> None: ...
def contrast_softmax(
    is_double: bool,
    call: Contrast,
    weights: int,
    extra: int,
    values: int,
    gradients: Sequence[_Rows],
    offset: int,
) -> _Sums: ...
def decorrelate(
    is_double: bool,
    shape: tuple[int, int, int, int],
    temperature: _Temperature,
    lambd: float,
    inputs: Sequence[_Rows],
    threads: int,
    values: int,
    gradients: Sequence[_Rows],
    offset: int,
) -> tuple[_Sums, _Sums]: ...
def align_forward(is_double: bool, call: Align, values: int, factors: int) -> _Sums: ...
def align_backward(
    is_double: bool, call: Align, upstream: int, factors: int, gradients: Sequence[_Rows], offset: int
) -> None: ...

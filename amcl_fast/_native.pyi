"""The CPU engine (csrc/). Tensors are addresses, with strides where rows need not touch; 0 or None: none."""

from collections.abc import Sequence

_Table = tuple[int, int, int] | None
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
        inputs: Sequence[_Table],
        skip: int,
        tau: int,
        similarities: int,
        columns: int,
        threads: int,
    ) -> None: ...

class Align:
    def __init__(
        self,
        shape: tuple[int, int, int, int],
        temperature: _Temperature,
        weight: float,
        inputs: Sequence[_Table],
        threads: int,
    ) -> None: ...

# As in `kernels.common`.
BOUND_SHARE: float
EPS: float
LONGEST: float
ALIGN_FACTORS: int  # numbers that align_forward leaves of each row for align_backward

def instruction_sets() -> list[str]: ...
def use_instruction_set(name: str) -> None: ...
def use_blas(sgemm: int, dgemm: int, set_threads: int) -> None: ...
def contrast_topk_forward(
    is_double: bool, call: Contrast, rows: int, chosen: int, slope_s: int, slope_r: int, slope_tau: int
) -> _Sums: ...
def contrast_topk_backward(
    is_double: bool,
    call: Contrast,
    gradient: int,
    chosen: int,
    slope_s: int,
    slope_r: int,
    gradients: Sequence[_Table],
    offset: int,
) -> None: ...
def contrast_softmax(
    is_double: bool,
    call: Contrast,
    gradient: int,
    extra: int,
    rows: int,
    slope_tau: int,
    gradients: Sequence[_Table],
    offset: int,
) -> _Sums: ...
def calibrate(
    is_double: bool, call: Contrast, tau_max: float, deficit: float, tau: int, similarities: int, columns: int
) -> None: ...
def decorrelate(
    is_double: bool,
    shape: tuple[int, int, int, int],
    temperature: _Temperature,
    lambd: float,
    inputs: Sequence[_Table],
    threads: int,
    losses: int,
    gradients: Sequence[_Table],
    offset: int,
) -> tuple[_Sums, _Sums]: ...
def align_forward(is_double: bool, call: Align, rows: int, factors: int) -> _Sums: ...
def align_backward(
    is_double: bool, call: Align, gradient: int, factors: int, gradients: Sequence[_Table], offset: int
) -> None: ...

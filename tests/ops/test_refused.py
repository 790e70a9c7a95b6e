"""What an operator refuses, every backend refuses in the same words."""

import math
import re
from pathlib import Path

import pytest
import torch

from amcl_fast import capabilities, ops, reference

BACKENDS = ["reference", "native", "triton"]
TAU = "tau_min and tau_max must be in order from 1.18e-38 to 3.4e"


def refuse(name, error, message, **changes):
    return pytest.param(changes, error, message, id=name)


NO_NUMBERS = {
    "text": ("0.1", "'0.1'"),
    "nothing": (None, "None"),
    "a bool": (True, "True"),
    "a complex number": (1j, "1j"),
    "a tensor": (torch.tensor(0.1), r"tensor\(0.1000\)"),
}


def no_numbers(*names):
    return [
        refuse(f"{name}: {kind}", TypeError, f"{name} must be a number, got {told}", **{name: value})
        for name in names
        for kind, (value, told) in NO_NUMBERS.items()
    ]


CONTRAST_SETTINGS = [
    *no_numbers("tau_min", "tau_max", "beta"),
    refuse("τ of zero", ValueError, TAU, tau_min=0.0),
    refuse("τ of NaN", ValueError, TAU, tau_min=math.nan),
    refuse("τ below float32's", ValueError, TAU, tau_min=1e-40),
    refuse("an empty range", ValueError, TAU, tau_min=3.0),
    refuse("an endless range", ValueError, TAU, tau_max=math.inf),
    refuse("β of NaN", ValueError, "beta must be finite, got nan", beta=math.nan),
    refuse("β of infinity", ValueError, "beta must be finite, got -inf", beta=-math.inf),
    refuse("unknown negatives", ValueError, "negatives must be one of .* got 'typo'", negatives="typo"),
    refuse("top_k of zero", ValueError, "top_k must be at least 1, got 0", top_k=0),
    refuse("no top_k", TypeError, "top_k must be an int with negatives='topk_mean', got None", top_k=None),
    refuse("fractional top_k", TypeError, "top_k must be an int with negatives='topk_mean', got 2.0", top_k=2.0),
    refuse("a bool as top_k", TypeError, "top_k must be an int with negatives='topk_mean', got True", top_k=True),
    refuse("a logit in a mean", ValueError, "extra must be None with negatives='topk_mean'", extra=torch.ones(2, 5)),
]
CONTRAST = [
    refuse("one head without its dimension", ValueError, "anchors must have the shape", anchors=torch.ones(5, 4)),
    refuse("no heads", ValueError, "anchors must have the shape", anchors=torch.ones(0, 5, 4)),
    refuse("no width", ValueError, "anchors must have the shape", anchors=torch.ones(2, 5, 0)),
    refuse("not a tensor", TypeError, "anchors must be a torch.Tensor, got list", anchors=[1.0]),
    refuse("whole numbers", TypeError, "anchors must be one of .* got torch.int32", anchors=torch.ones(2, 5, 4).int()),
    refuse("candidates of no kind", TypeError, "candidates must be a torch.Tensor, got NoneType", candidates=None),
    refuse(
        "another width", ValueError, r"candidates must have the shape \(2, any, 4\)", candidates=torch.ones(2, 7, 5)
    ),
    refuse("other heads", ValueError, r"candidates must have the shape \(2, any, 4\)", candidates=torch.ones(1, 7, 4)),
    refuse("no candidates", ValueError, "candidates must have the shape", candidates=torch.ones(2, 0, 4)),
    refuse(
        "another dtype", TypeError, "candidates must have the dtype of anchors", candidates=torch.ones(2, 7, 4).half()
    ),
    refuse(
        "another device",
        ValueError,
        "candidates must be on the device of anchors",
        candidates=torch.ones(2, 7, 4, device="meta"),
    ),
    refuse(
        "φ of candidates alone",
        ValueError,
        "phi_anchors and phi_candidates must be given both or neither, got phi_candidates alone",
        phi_anchors=None,
    ),
    refuse(
        "φ of anchors alone",
        ValueError,
        "phi_anchors and phi_candidates must be given both or neither, got phi_anchors alone",
        phi_candidates=None,
    ),
    refuse(
        "φ of another width",
        ValueError,
        r"phi_candidates must have the shape \(2, 7, 3\)",
        phi_candidates=torch.ones(2, 7, 9),
    ),
    refuse(
        "φ of other rows", ValueError, r"phi_anchors must have the shape \(2, 5, 3\)", phi_anchors=torch.ones(2, 6, 3)
    ),
    refuse(
        "φ without heads", ValueError, r"phi_anchors must have the shape \(2, 5, any\)", phi_anchors=torch.ones(5, 3)
    ),
    refuse(
        "φ of another dtype",
        TypeError,
        "phi_anchors must have the dtype of anchors",
        phi_anchors=torch.ones(2, 5, 3).double(),
    ),
    refuse("several offsets", ValueError, "offset must be a 0-dim tensor", offset=torch.ones(3)),
    refuse(
        "an offset in half precision", TypeError, "offset must have the dtype of anchors", offset=torch.ones(()).half()
    ),
    refuse("a number as offset", TypeError, "offset must be a torch.Tensor, got float", offset=0.5),
    refuse("skip in floating point", TypeError, "skip must be int64", skip=torch.zeros(5, 1)),
    refuse("skip of other anchors", ValueError, r"skip must have the shape \(5, any\)", skip=torch.zeros(4, 1).long()),
    refuse("skip of nothing", ValueError, r"skip must have the shape \(5, any\)", skip=torch.zeros(5, 0).long()),
    refuse(
        "skip elsewhere",
        ValueError,
        "skip must be on the device of anchors",
        skip=torch.zeros(5, 1, device="meta").long(),
    ),
    refuse("skip behind the end", ValueError, "skip must hold columns from 0 to 6", skip=torch.full((5, 1), 7)),
    refuse("skip before the start", ValueError, "skip must hold columns from 0 to 6", skip=torch.full((5, 1), -1)),
    refuse("no negatives", ValueError, "candidates must hold at least one negative", skip=torch.arange(7).expand(5, 7)),
    *CONTRAST_SETTINGS,
    refuse(
        "a logit of other anchors",
        ValueError,
        r"extra must have the shape \(2, 5\)",
        extra=torch.ones(2, 6),
        negatives="softmax",
    ),
    refuse(
        "a logit of another dtype",
        TypeError,
        "extra must have the dtype of anchors",
        extra=torch.ones(2, 5).double(),
        negatives="softmax",
    ),
]

PAIRED = [
    refuse("not a tensor", TypeError, "x must be a torch.Tensor, got NoneType", x=None),
    refuse("two dimensions", ValueError, "x must have the shape", x=torch.ones(5, 4)),
    refuse("other rows", ValueError, r"y must have the shape \(2, 5, 4\)", y=torch.ones(2, 6, 4)),
    refuse("another dtype", TypeError, "y must have the dtype of x", y=torch.ones(2, 5, 4).double()),
    refuse("φ alone", ValueError, "phi_x and phi_y must be given both or neither, got phi_x alone", phi_y=None),
    refuse("φ of other rows", ValueError, r"phi_y must have the shape \(2, 5, 3\)", phi_y=torch.ones(2, 6, 3)),
    refuse("several offsets", ValueError, "offset must be a 0-dim tensor", offset=torch.ones(1)),
]
PAIRED_SETTINGS = [
    refuse("τ of zero", ValueError, TAU, tau_min=0.0),
    refuse("β of NaN", ValueError, "beta must be finite, got nan", beta=math.nan),
]
ALIGN_SETTINGS = [
    *PAIRED_SETTINGS,
    *no_numbers("tau_min", "beta", "weight"),
    refuse("weight of infinity", ValueError, "weight must be finite, got inf", weight=math.inf),
]
DECORRELATE_SETTINGS = [
    *PAIRED_SETTINGS,
    *no_numbers("tau_max", "beta", "lambd"),
    refuse("lambd of NaN", ValueError, "lambd must be finite, got nan", lambd=math.nan),
]


@pytest.fixture(params=BACKENDS)
def backend(request):
    if request.param == "triton" and torch.cuda.is_available():
        pytest.skip("the interpreter takes CPU tensors")
    if request.param == "native" and not capabilities.native_status().available:
        pytest.skip(capabilities.native_status().reason)
    return request.param


def contrast_arguments():
    return {
        "anchors": torch.ones(2, 5, 4),
        "candidates": torch.ones(2, 7, 4),
        "phi_anchors": torch.ones(2, 5, 3),
        "phi_candidates": torch.ones(2, 7, 3),
        "offset": torch.tensor(0.1),
        "skip": torch.zeros(5, 1, dtype=torch.int64),
        "tau_min": 0.1,
        "tau_max": 1.0,
        "negatives": "topk_mean",
        "top_k": 2,
        "beta": 0.01,
    }


def paired_arguments(**more):
    tensors = {"x": torch.ones(2, 5, 4), "y": torch.ones(2, 5, 4), "offset": torch.tensor(0.1)}
    phi = {"phi_x": torch.ones(2, 5, 3), "phi_y": torch.ones(2, 5, 3)}
    return tensors | phi | {"tau_min": 0.1, "tau_max": 1.0, "beta": 0.01} | more


@pytest.mark.parametrize(("changes", "error", "message"), CONTRAST)
def test_contrast(changes, error, message, backend):
    with pytest.raises(error, match=f"^{message}"):
        ops.contrast(**contrast_arguments() | changes, backend=backend)


@pytest.mark.parametrize(("changes", "error", "message"), [*PAIRED, *ALIGN_SETTINGS])
def test_align(changes, error, message, backend):
    with pytest.raises(error, match=f"^{message}"):
        ops.align(**paired_arguments(weight=0.5) | changes, backend=backend)


@pytest.mark.parametrize(("changes", "error", "message"), [*PAIRED, *DECORRELATE_SETTINGS])
def test_decorrelate(changes, error, message, backend):
    with pytest.raises(error, match=f"^{message}"):
        ops.decorrelate(**paired_arguments(lambd=5e-3) | changes, backend=backend)


@pytest.mark.parametrize(("changes", "error", "message"), CONTRAST_SETTINGS)
def test_settings_of_the_reference_contrast(changes, error, message):
    with pytest.raises(error, match=f"^{message}"):
        reference.contrast(**contrast_arguments() | changes)


@pytest.mark.parametrize(("changes", "error", "message"), ALIGN_SETTINGS)
def test_settings_of_the_reference_align(changes, error, message):
    with pytest.raises(error, match=f"^{message}"):
        reference.align(**paired_arguments(weight=0.5) | changes)


@pytest.mark.parametrize(("changes", "error", "message"), DECORRELATE_SETTINGS)
def test_settings_of_the_reference_decorrelate(changes, error, message):
    with pytest.raises(error, match=f"^{message}"):
        reference.decorrelate(**paired_arguments(lambd=5e-3) | changes)


def test_settings_are_checked_in_a_transform():
    """Of torch.func, where the reference is what `auto` means."""
    given = contrast_arguments()
    anchors = given.pop("anchors")

    def loss(anchors, **changes):
        return reference.contrast(anchors, **given | changes)[0].sum()

    assert torch.func.grad(loss)(anchors).shape == anchors.shape
    assert torch.func.vmap(loss)(anchors[None]).shape == (1,)
    with pytest.raises(ValueError, match=r"^negatives must be one of .* got 'typo'"):
        torch.func.grad(lambda x: loss(x, negatives="typo"))(anchors)


def test_what_is_right_is_taken(backend):
    """The arguments that the cases above change, and what stands at their edges."""
    for changes in (
        {},
        {"negatives": "softmax", "top_k": None, "extra": torch.ones(2, 5)},
        {"phi_anchors": None, "phi_candidates": None, "offset": None, "skip": None, "beta": -0.5},
        {"top_k": 1000, "skip": torch.arange(6).expand(5, 6)},
    ):
        rows, _ = ops.contrast(**contrast_arguments() | changes, backend=backend)
        assert rows.shape == (2, 5)
    assert ops.align(**paired_arguments(weight=-1.0), backend=backend)[0].shape == (2, 5)
    assert ops.decorrelate(**paired_arguments(lambd=0.0), backend=backend)[0].shape == (2,)


def test_symbols_may_be_checked():
    """Of torch.compile with dynamic=True numbers and sizes are symbols."""

    def loss(x, y, factor, top_k):
        settings = {"tau_min": 0.1 * factor, "tau_max": factor, "beta": 0.01 * factor, "top_k": top_k}
        return ops.contrast(x, y, x, y, None, None, negatives="topk_softmax", **settings, backend="reference")[0]

    compiled = torch.compile(loss, dynamic=True, fullgraph=True, backend="eager")
    for rows, factor, top_k in ((5, 1.0, 3), (6, 2.0, 4), (9, 3.5, 5)):
        x, y = torch.randn(2, rows, 4), torch.randn(2, rows + 3, 4)
        torch.testing.assert_close(compiled(x, y, factor, top_k), loss(x, y, factor, top_k))
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        loss(x, y, factor, 0)


DTYPES = {
    "reference": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
    "native": (torch.float32, torch.float64),
    "triton": (torch.float32, torch.bfloat16, torch.float16),
}
OTHERS = (*DTYPES["reference"], torch.int64, torch.float8_e4m3fn, torch.complex64)


@pytest.mark.parametrize("dtype", OTHERS, ids=str)
def test_dtypes_that_a_backend_takes(backend, dtype):
    arguments = {
        k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in contrast_arguments().items()
    }
    if dtype in DTYPES[backend]:
        assert ops.resolve(backend, arguments["anchors"]) == backend
        assert ops.contrast(**arguments, backend=backend)[0].shape == (2, 5)
        return
    taken = ", ".join(str(other).removeprefix("torch.") for other in DTYPES[backend])
    message = f"must be one of {taken} for backend '{backend}', got {dtype}"
    with pytest.raises(TypeError, match=f"^anchors {message}$"):
        ops.contrast(**arguments, backend=backend)
    with pytest.raises(TypeError, match=f"^tensors {message}$"):
        ops.resolve(backend, arguments["anchors"])


def test_pages_say_which_dtypes():
    told = (Path(__file__).parents[2] / "docs" / "losses.md").read_text()
    for name, dtypes in DTYPES.items():
        taken = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        assert re.search(rf"^- `{name}` .*{taken}", ops.__doc__, re.MULTILINE)
        assert re.search(rf"^\| `{name}` \|.*\| {taken} \|$", told, re.MULTILINE)


def test_beside_half_precision_there_may_be_float32():
    half = {k: v.bfloat16() if k in ("anchors", "candidates") else v for k, v in contrast_arguments().items()}
    rows, _ = ops.contrast(**half | {"phi_anchors": None, "phi_candidates": None}, backend="reference")
    assert rows.shape == (2, 5)

"""The contrast with a temperature per anchor, by the kernels."""

import pytest
import torch

from amcl_fast import reference
from amcl_fast.kernels import tuning
from amcl_fast.ops import triton as backend
from amcl_fast.reference import Chosen
from tests.helpers.contrast import pairs
from tests.helpers.kernels.compare import DEVICE, check, evaluate, relative_error

pytestmark = pytest.mark.slow

RANGE = {"tau_min": 0.1, "tau_max": 0.6, "beta": 0.0}
FORMS = [
    {"negatives": "topk_mean", "top_k": 9},
    {"negatives": "topk_softmax", "top_k": 9},
    {"negatives": "softmax", "top_k": None},
    {"negatives": "topk_mean", "top_k": 1000},
]
NAMES = ["mean", "top", "softmax", "mean of all"]


def two_tables(operator):
    """`operator` of anchors, candidates, τ, an extra logit and what is skipped."""
    return lambda x, y, tau, extra, skip, **settings: operator(
        x, y, None, None, None, skip, tau=tau, extra=extra, **settings
    )


def one_table(operator):
    """The same of anchors that are their own candidates."""
    return lambda x, *rest, **settings: two_tables(operator)(x, x, *rest, **settings)


def inputs(heads, anchors, candidates, d, form, skip=None):
    """Of `two_tables`; τ from below its range to beyond it, and an extra logit where the form has room for one."""
    generator = torch.Generator().manual_seed(anchors * d)
    tables = [
        torch.nn.functional.normalize(torch.randn(heads, n, d, generator=generator, dtype=torch.float64), dim=-1)
        for n in (anchors, candidates)
    ]
    tau = 0.05 + torch.rand(heads, anchors, generator=generator, dtype=torch.float64)
    extra = 3 * torch.randn(heads, anchors, generator=generator, dtype=torch.float64)
    return [*tables, tau, None if form["negatives"] == "topk_mean" else extra, skip]


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_two_tables(form):
    check("contrast", inputs(2, 22, 22, 24, form, pairs(22)), RANGE | form, wrap=two_tables)


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_one_table(form):
    """Its row has its own temperature as an anchor, the anchor's as a candidate."""
    x, _, *rest = inputs(2, 70 if form["top_k"] != 9 else 22, 1, 24, form)
    rest[-1] = torch.stack([torch.arange(x.shape[1]), (3 * torch.arange(x.shape[1]) + 1) % x.shape[1]], 1)[1:]
    rest = [None if t is None else t[:, 1:] if t.dim() == 2 and t.is_floating_point() else t for t in rest]
    check("contrast", [x[:, 1:], *rest[:2], rest[2] - 1 + (rest[2] == 0)], RANGE | form, wrap=one_table)


@pytest.mark.parametrize("form", FORMS[:3], ids=NAMES[:3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_few_anchors_of_a_queue_in_half_precision(form, dtype):
    check("contrast", inputs(1, 5, 150, 48, form), RANGE | form, dtype, wrap=two_tables)


@pytest.mark.parametrize("form", FORMS[:3], ids=NAMES[:3])
def test_chosen_is_not_looked_for(form, monkeypatch):
    """Rows and gradients by what was found before are those by what is found."""
    form = form | {"top_k": form["top_k"] or 20}
    x, y, tau, extra, _ = (None if t is None else t.float().to(DEVICE) for t in inputs(1, 6, 20, 16, form))
    kind = {"negatives": "topk_mean" if extra is None else "topk_softmax", "top_k": form["top_k"]}
    expected = evaluate(two_tables(reference.contrast), [x, y, tau, extra, None], RANGE | kind)
    s, columns = (x @ y.mT).topk(kind["top_k"])
    monkeypatch.setattr(backend, "hardest", None)
    chosen = Chosen(s, columns.int())
    found = evaluate(two_tables(backend.contrast), [x, y, tau, extra, None], RANGE | kind | {"chosen": chosen})
    for key, value in found.items():
        assert relative_error(value, expected[key]) < 2e-6, key


@pytest.mark.parametrize("form", FORMS[1:3], ids=NAMES[1:3])
def test_a_nan_is_its_own_rows(form):
    x, y, tau, extra, _ = (t if t is None else t.float().to(DEVICE) for t in inputs(1, 5, 20, 16, form))
    x[0, 2, 0], tau[0, 4] = float("nan"), float("nan")
    rows, _ = two_tables(backend.contrast)(x, y, tau, extra, None, **RANGE, **form)
    assert rows[0].isnan().tolist() == [False, False, True, False, True]


@pytest.mark.parametrize("form", FORMS[1:3], ids=NAMES[1:3])
def test_one_gradient_alone(form):
    """τ's by itself needs no table's, and the other way about."""
    given = [None if t is None else t.float().to(DEVICE) for t in inputs(1, 5, 20, 16, form)]
    leaves = [t.requires_grad_() for t in given[:4]]
    expected = torch.autograd.grad(two_tables(backend.contrast)(*given, **RANGE, **form)[0].sum(), leaves)
    for number in range(4):
        alone = [t.detach().requires_grad_(i == number) for i, t in enumerate(leaves)]
        rows, _ = two_tables(backend.contrast)(*alone, None, **RANGE, **form)
        assert torch.equal(torch.autograd.grad(rows.sum(), alone[number])[0], expected[number])


def test_launch_parameters_are_its_own():
    """What a sweep found for a constant may spill here."""
    x, y, tau, extra, _ = (None if t is None else t.float().to(DEVICE) for t in inputs(1, 5, 20, 16, FORMS[2]))
    with tuning.trying("dense.forward", {}) as forward, tuning.trying("dense.gradient", {}) as gradient:
        evaluate(two_tables(backend.contrast), [x, y, tau, extra, None], RANGE | FORMS[2])
    assert forward == ["float32 d=64 per anchor few"]
    assert gradient == [f"float32 d=64 per anchor {side} few" for side in ("rows", "columns")]


@pytest.mark.parametrize("form", FORMS[1:3], ids=NAMES[1:3])
def test_is_a_well_formed_operator(form):
    x, y, tau, extra, _ = (None if t is None else t.float().to(DEVICE) for t in inputs(1, 4, 20, 16, form))
    tables = [t.requires_grad_() for t in (x, y)]
    more = [t.requires_grad_() for t in (extra, tau)]
    given = (*tables, None, None, None, None, *more)
    settings = (True, form["top_k"] or 20, False, 0.1, 0.6, 0.0)
    torch.library.opcheck(backend._contrast, (*given, None, None, *settings))
    if form["top_k"]:
        s, columns = (t.detach() for t in (x @ y.mT).topk(9))
        torch.library.opcheck(backend._contrast, (*given, s, columns.int(), *settings))

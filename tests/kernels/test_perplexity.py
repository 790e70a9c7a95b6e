"""Temperatures of a given perplexity, by the kernels."""

import math

import pytest
import torch

from amcl_fast import ops, reference
from amcl_fast.kernels import perplexity as kernels
from amcl_fast.ops import triton as backend
from tests.helpers.contrast import pairs
from tests.helpers.kernels.compare import DEVICE

pytestmark = pytest.mark.slow

WIDE, NARROW = {"tau_min": 1e-5, "tau_max": 2.0}, {"tau_min": 0.1, "tau_max": 0.25}
HARDEST, ALL = {"negatives": "topk_softmax", "top_k": 9}, {"negatives": "softmax", "top_k": None}
FORMS = pytest.mark.parametrize("form", [HARDEST, ALL], ids=["hardest", "all"])


def table(heads, rows, d, seed=0):
    """Of numbers whose products float32 and bfloat16 form exactly."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.nn.functional.normalize(torch.randn(heads, rows, d, generator=generator), dim=-1)
    return ((64 * z).round() / 64).to(DEVICE)


def bisected(similarities, perplexity, tau_min, tau_max):
    """τ of rows of float64 similarities, from the definition of the perplexity."""
    target = max(1.0, perplexity * similarities.shape[-1])
    low, high = (torch.full_like(similarities[..., :1], math.log(tau)) for tau in (tau_min, tau_max))
    for _ in range(60):
        middle = (low + high) / 2
        share = (similarities / middle.exp()).softmax(-1)
        sharp = torch.special.entr(share).sum(-1, keepdim=True).exp() < target
        low, high = torch.where(sharp, middle, low), torch.where(sharp, high, middle)
    return high.exp()[..., 0]


def check(x, y, skip, form, settings, perplexity, allowed=1e-5):
    found, chosen = backend.calibrate(x, y, skip, perplexity=perplexity, **form, **settings)
    expected, of_reference = reference.calibrate(
        x.double(), y.double(), skip, perplexity=perplexity, **form, **settings
    )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=allowed, atol=0)
    assert torch.equal(found, backend.calibrate(x, y, skip, perplexity=perplexity, **form, **settings)[0])
    assert (chosen is None) == (form == ALL)
    if chosen is not None:
        order = [c.columns.sort(-1)[1] for c in (chosen, of_reference)]
        columns, similarities = (
            [c[i].gather(-1, at).double() for c, at in zip((chosen, of_reference), order, strict=True)] for i in (1, 0)
        )
        assert torch.equal(*columns)
        torch.testing.assert_close(*similarities)
    return found


@FORMS
@pytest.mark.parametrize(
    ("settings", "perplexity"), [(WIDE, 0.15), (WIDE, 0.5), (WIDE, 0.95), (NARROW, 0.05), (NARROW, 0.95)]
)
def test_against_the_reference(form, settings, perplexity):
    x = table(2, 22, 24)
    tau = check(x, x, pairs(22).to(DEVICE), form, settings, perplexity)
    if settings == NARROW:  # where nothing has it, an end of the range to the last bit
        assert ((tau == NARROW["tau_min"]) | (tau == NARROW["tau_max"])).any()


@FORMS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_queue_in_half_precision(form, dtype):
    check(table(1, 5, 160).to(dtype), table(1, 150, 160, 1).to(dtype), None, form, WIDE, 0.3)


@pytest.mark.parametrize("perplexity", [0.01, 0.3, 0.9])
def test_as_it_is_defined(perplexity):
    """Rows of 1200 are read again in each step, those of 40 are kept; the entropy term by term, in float64."""
    for top_k in (40, 1200):
        generator = torch.Generator().manual_seed(top_k)
        s = 0.1 * torch.randn(2, 3, top_k, generator=generator)
        # A tail, two clusters, one that is far from the others.
        s[0, 1], s[0, 2, ::3], s[1, 0, 7] = s[0, 1].abs(), s[0, 2, ::3] + 0.8, 0.98
        found = kernels.perplexity_of_chosen(s.to(DEVICE), perplexity, 1e-5, 2.0)
        expected = bisected(s.double(), perplexity, 1e-5, 2.0)
        torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-5, atol=0)


@pytest.mark.skipif(DEVICE == "cuda", reason="a compiled kernel holds the number of steps")
def test_few_looks():
    """Random rows and those that nothing solves: three or four steps, and two; 32 at most whatever the row."""
    steps = kernels.STEPS.value
    s = 0.1 * torch.randn(1, 64, 40, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    exact = kernels.perplexity_of_chosen(s, 0.3, 1e-5, 2.0)
    ends = torch.full_like(s, 0.5)
    assert steps == 32
    try:
        kernels.STEPS.value = 5
        assert torch.equal(kernels.perplexity_of_chosen(s, 0.3, 1e-5, 2.0), exact)
        kernels.STEPS.value = 2
        assert (kernels.perplexity_of_chosen(ends, 0.3, 0.125, 2.0) == 0.125).all()
        assert (kernels.perplexity_of_chosen(s, 0.3, 1.0, 2.0) == 1.0).all()
        assert (kernels.perplexity_of_chosen(s, 0.99, 0.01, 0.015625) == 0.015625).all()
    finally:
        kernels.STEPS.value = steps


@FORMS
def test_less_than_one_negative_is_the_least_temperature(form):
    x, y = table(1, 4, 16), table(1, 15, 16, 1)
    tau, _ = backend.calibrate(x, y, None, perplexity=0.06, **form, **NARROW)
    assert (tau == torch.tensor(NARROW["tau_min"])).all()


@FORMS
def test_equal_similarities(form):
    x = table(1, 4, 16)
    tau, _ = backend.calibrate(x, x[:, :1].expand(1, 15, 16), None, perplexity=0.5, **form, **NARROW)
    assert (tau == torch.tensor(NARROW["tau_min"])).all()


def test_ties():
    """Half of the candidates twice: their softmax is flat among equals."""
    y = table(1, 20, 16, 1).repeat(1, 2, 1)
    for form in (HARDEST, ALL):
        check(table(1, 6, 16), y, None, form, WIDE, 0.6)


@FORMS
def test_a_nan_row_has_the_least_temperature(form):
    x, y = table(1, 6, 16), table(1, 20, 16, 1)
    whole, _ = backend.calibrate(x, y, None, perplexity=0.5, **form, **WIDE)
    x[0, 2, 3] = float("nan")
    tau, _ = backend.calibrate(x, y, None, perplexity=0.5, **form, **WIDE)
    others = torch.arange(6) != 2
    assert tau[0, 2] == torch.tensor(WIDE["tau_min"]) and torch.equal(tau[:, others], whole[:, others])


def test_the_hardest_alone():
    x, y = table(1, 4, 16), table(1, 15, 16, 1)
    settings = WIDE | {"negatives": "topk_mean", "top_k": 1, "perplexity": 0.9}
    tau, chosen = backend.calibrate(x, y, None, **settings)
    assert (tau == torch.tensor(WIDE["tau_min"])).all() and chosen.columns.shape == (1, 4, 1)


def test_of_all_there_is_nothing_to_choose():
    x, y = table(1, 4, 16), table(1, 15, 16, 1)
    tau, chosen = backend.calibrate(x, y, None, negatives="topk_mean", top_k=1000, perplexity=0.5, **WIDE)
    assert chosen is None
    assert torch.equal(tau, backend.calibrate(x, y, None, perplexity=0.5, **ALL, **WIDE)[0])


@FORMS
def test_what_it_chooses_is_what_the_contrast_takes(form):
    """One selection for both, the rows of a contrast that selects itself."""
    x, y = table(1, 6, 16).requires_grad_(), table(1, 20, 16, 1)
    tau, chosen = ops.calibrate(x, y, None, perplexity=0.5, **form, **WIDE, backend="triton")
    settings = WIDE | form | {"tau": tau, "beta": 0.0, "backend": "triton"}
    results = [ops.contrast(x, y, None, None, None, None, chosen=c, **settings)[0] for c in (chosen, None)]
    assert torch.equal(*results)
    assert torch.equal(*(torch.autograd.grad(rows.sum(), x)[0] for rows in results))


@FORMS
def test_is_a_well_formed_operator_and_compiles_whole(form):
    x, y = table(1, 4, 16), table(1, 20, 16, 1)
    given = (x, y, None, form["top_k"] or 20, 1e-5, 2.0, 0.5)
    torch.library.opcheck(backend._calibrate, given)
    torch.library.opcheck(backend._calibrate, (x, y[:, :4], pairs(4).to(DEVICE), 2, 1e-5, 2.0, 0.5))

    def loss(x, y):
        tau, chosen = backend.calibrate(x, y, None, perplexity=0.5, **form, **WIDE)
        rows, _ = backend.contrast(x, y, None, None, None, None, tau=tau * 1.5, chosen=chosen, beta=0, **form, **WIDE)
        return rows

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, y), loss(x, y))

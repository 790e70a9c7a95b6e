from contextlib import ExitStack

import pytest
import torch

from amcl_fast import ops, reference
from amcl_fast.kernels import tuning
from amcl_fast.ops import triton as backend
from tests.helpers.contrast import pairs, with_extra
from tests.helpers.kernels.compare import DEVICE, check, evaluate, relative_error

pytestmark = pytest.mark.slow

RANGE = {"tau_min": 0.05, "tau_max": 2.0, "beta": 1e-2}
FORMS = [
    {"negatives": "topk_mean", "top_k": 9},
    {"negatives": "topk_softmax", "top_k": 9},
    {"negatives": "softmax", "top_k": None},
    {"negatives": "topk_mean", "top_k": 1000},
]
NAMES = ["mean", "top", "softmax", "mean of all"]


def unit(generator, *shape):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def inputs(heads, anchors, candidates, d, skip=None, offset=0.2, constant=False):
    """Arguments of contrast; anchors and candidates are separate leaves even where their values are equal."""
    generator = torch.Generator().manual_seed(anchors * d)
    x = unit(generator, heads, anchors, d)
    phi_x = 1.5 * torch.randn(heads, anchors, d, generator=generator, dtype=torch.float64) / d**0.25
    if candidates is None:
        y, phi_y = x.clone(), phi_x.clone()
    else:
        y = unit(generator, heads, candidates, d)
        phi_y = 1.5 * torch.randn(heads, candidates, d, generator=generator, dtype=torch.float64) / d**0.25
    if constant:
        return [x, y, None, None, None, skip]
    return [x, y, phi_x, phi_y, None if offset is None else torch.tensor(offset, dtype=torch.float64), skip]


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
@pytest.mark.parametrize("constant", [False, True], ids=["adaptive", "constant"])
def test_simclr(form, constant):
    settings = RANGE | form
    if constant:
        settings |= {"tau_min": 0.3, "tau_max": 0.3}
    check("contrast", inputs(2, 22, None, 24, pairs(22), constant=constant), settings)


def one_table(operator):
    """`operator` of anchors that are their own candidates."""
    return lambda x, p, offset, skip, **settings: operator(x, x, p, p, offset, skip, **settings)


def uneven_skip(rows, each):
    """Columns that an anchor skips; those that skip it are others."""
    generator = torch.Generator().manual_seed(rows)
    return torch.stack([torch.randperm(rows, generator=generator)[:each] for _ in range(rows)])


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
@pytest.mark.parametrize("constant", [False, True], ids=["adaptive", "constant"])
def test_one_table(form, constant):
    rows = 26 if form["top_k"] == 9 else 70
    x, _, p, _, offset, _ = inputs(1, rows, None, 24, constant=constant)
    settings = RANGE | form | ({"tau_min": 0.25, "tau_max": 0.25} if constant else {})
    check("contrast", [x, p, offset, uneven_skip(rows, 3)], settings, wrap=one_table)


@pytest.mark.parametrize("form", FORMS[1:3], ids=NAMES[1:3])
def test_one_table_of_two_heads_in_half_precision(form):
    x, _, p, _, offset, _ = inputs(2, 24, None, 80)
    check("contrast", [x, p, offset, uneven_skip(24, 2)], RANGE | form, torch.float16, wrap=one_table)


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_one_table_is_two_with_their_gradients_added(form):
    """Of float32 numbers whose products and sums are exact, so that s has the same bits whichever row comes first."""
    rows = 24 if form["top_k"] == 9 else 70
    generator = torch.Generator().manual_seed(2)
    x = torch.randint(-4, 5, (1, rows, 16), generator=generator).to(DEVICE) / 16
    p = torch.randint(-2, 3, (1, rows, 16), generator=generator).to(DEVICE) / 8
    offset, skip = torch.tensor(0.2, device=DEVICE), uneven_skip(rows, 2).to(DEVICE)
    found = evaluate(one_table(backend.contrast), [x, p, offset, skip], RANGE | form)
    two = evaluate(backend.contrast, [x, x.clone(), p, p.clone(), offset, skip], RANGE | form)
    assert torch.equal(found["rows"], two["rows"])
    for number, expected in enumerate([two["gradient_0"] + two["gradient_1"], two["gradient_2"] + two["gradient_3"]]):
        assert relative_error(found[f"gradient_{number}"], expected) < 1e-6
    assert relative_error(found["gradient_2"], two["gradient_4"]) < 1e-6


@pytest.mark.parametrize("form", FORMS[1:3], ids=NAMES[1:3])
@pytest.mark.parametrize("needed", range(3), ids=["table", "phi", "offset"])
def test_one_gradient_of_one_table(form, needed):
    """One of the gradients alone is the one of all."""
    x, _, p, _, offset, _ = (None if t is None else t.float().to(DEVICE) for t in inputs(1, 20, None, 16))
    leaves = [t.requires_grad_() for t in (x, p, offset)]
    rows, _ = one_table(backend.contrast)(*leaves, None, **RANGE, **form)
    expected = torch.autograd.grad(rows.sum(), leaves, retain_graph=True)
    alone = [t.detach().requires_grad_(number == needed) for number, t in enumerate(leaves)]
    rows, _ = one_table(backend.contrast)(*alone, None, **RANGE, **form)
    assert torch.equal(torch.autograd.grad(rows.sum(), alone[needed])[0], expected[needed])


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_queue(form):
    check("contrast", inputs(1, 5, 150, 48), RANGE | form)


@pytest.mark.parametrize("form", FORMS[:3], ids=NAMES[:3])
def test_released_range(form):
    # Temperatures from 1e-5 on: s/τ up to 1e5.
    tensors = inputs(1, 6, 70, 16, offset=None)
    tensors[2:4] = [3 * t for t in tensors[2:4]]
    # Over all negatives s is formed again in the backward pass. On a GPU the bits are the same; NumPy's product, which
    # is the interpreter's, may round them differently for another shape of tile, and 1/τ turns 2⁻²⁴ into 6e-3.
    floor = 2e-2 if form["negatives"] == "softmax" and DEVICE == "cpu" else None
    check("contrast", tensors, {"tau_min": 1e-5, "tau_max": 2.0, "beta": 1e-4} | form, floor=floor)


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("constant", [False, True], ids=["adaptive", "constant"])
@pytest.mark.parametrize("anchors", [70, 6, None], ids=["many", "few", "one table"])
def test_weights_of_large_logits(anchors, constant, copies):
    """Their sum is 1 however large s/τ is; exp(logit − log Σ exp) would be off by what rounding left of the logarithm.

    Every similarity is a float32 number, so no order of summation changes it, and with copies every weight is shared.
    Few anchors are split over the candidates.
    """
    generator = torch.Generator().manual_seed(0)

    def grid(rows, top, scale):
        return torch.randint(-top, top + 1, (1, rows, 16), generator=generator).double() * scale

    columns = 100 if anchors else 30
    y = grid(columns, 4, 2**-4).repeat(1, copies, 1)
    q = None if constant else grid(columns, 2, 0.5).abs().repeat(1, copies, 1)
    settings = {"tau_min": 1e-5, "tau_max": 1e-5 if constant else 2.0, "beta": 1e-4} | FORMS[2]
    if anchors is None:
        wrap, tensors = one_table, [y, q, None, None]
    else:
        x, p = grid(anchors, 4, 2**-4), None if constant else grid(anchors, 2, 0.5).abs()
        wrap, tensors = lambda operator: operator, [x, y, p, q, None, None]
    # Not `check`: float32 PyTorch, its yardstick, is off itself.
    found = evaluate(wrap(backend.contrast), [None if t is None else t.float().to(DEVICE) for t in tensors], settings)
    for key, value in evaluate(wrap(reference.contrast), tensors, settings).items():
        if key == "rows" or key.startswith("gradient"):
            assert relative_error(found[key].cpu(), value) < 2e-6, key


@pytest.mark.parametrize("form", FORMS[1:3], ids=NAMES[1:3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(form, dtype):
    check("contrast", inputs(1, 20, None, 80, pairs(20)), RANGE | form, dtype)


@pytest.mark.parametrize("form", FORMS[1:3], ids=NAMES[1:3])
def test_wide(form):
    check("contrast", inputs(1, 3, 70, 160), RANGE | form)


@pytest.mark.parametrize("form", FORMS[1:3], ids=NAMES[1:3])
def test_extra_logit(form):
    tensors = [None if t is None else t.float().to(DEVICE) for t in inputs(2, 5, 70, 16)]
    extra = torch.linspace(-5, 30, 10, device=DEVICE).reshape(2, 5)

    found = evaluate(with_extra(backend.contrast), [*tensors, extra], RANGE | form)
    expected = evaluate(with_extra(reference.contrast), [*tensors, extra], RANGE | form)
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5, msg=key)


def test_hardest_alone():
    check("contrast", inputs(2, 16, None, 16, pairs(16)), RANGE | {"negatives": "topk_softmax", "top_k": 1})


def test_equal_similarities():
    generator = torch.Generator().manual_seed(1)
    tensors = inputs(1, 6, 150, 16)
    tensors[0], tensors[1] = (
        torch.randint(-1, 2, t.shape, generator=generator, dtype=torch.float64) / 4 for t in tensors[:2]
    )
    check("contrast", tensors, RANGE | FORMS[0])


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_no_anchors(form):
    """A process whose own batch is empty takes part, with gradients of zero for everyone's candidates."""
    x, y, p, q, offset, _ = (None if t is None else t.float().to(DEVICE) for t in inputs(2, 0, 70, 24))
    found = evaluate(backend.contrast, [x, y, p, q, offset, None], RANGE | form)
    assert found["rows"].shape == (2, 0)
    for number, shape in enumerate([(2, 0, 24), (2, 70, 24), (2, 0, 24), (2, 70, 24), ()]):
        gradient = found[f"gradient_{number}"]
        assert gradient.shape == shape and torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_strided(form):
    x, y, p, q, offset, _ = (None if t is None else t.float().to(DEVICE) for t in inputs(2, 4, 70, 24))
    expected = evaluate(backend.contrast, [x, y, p, q, offset, None], RANGE | form)
    turned = [t.mT.contiguous().mT for t in (x, y)]
    heads_inside = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (p, q)]
    found = evaluate(backend.contrast, [*turned, *heads_inside, offset, None], RANGE | form)
    for key, value in found.items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("form", FORMS[1:3], ids=NAMES[1:3])
def test_only_needed_gradients(form):
    x, y, p, q, _, _ = (None if t is None else t.float().to(DEVICE) for t in inputs(1, 4, 70, 16))
    x.requires_grad_()
    q.requires_grad_()
    rows, _ = backend.contrast(x, y, p, q, None, None, **RANGE, **form)
    rows.sum().backward()
    assert x.grad is not None
    assert q.grad is not None
    assert y.grad is None
    assert p.grad is None


def test_no_negatives():
    x, y, *_ = (t.float().to(DEVICE) for t in inputs(1, 2, None, 16, pairs(2)))
    with pytest.raises(ValueError, match="candidates must hold at least one negative"):
        ops.contrast(x, y, None, None, None, pairs(2).to(DEVICE), **RANGE, **FORMS[0], backend="triton")


def test_launch_parameters_are_asked_for():
    x, y, p, q, *_ = (None if t is None else t.float().to(DEVICE) for t in inputs(1, 12, 70, 16))
    asked = {}
    with ExitStack() as stack:
        for table in ("dense.forward", "dense.gradient", "topk.scores", "topk.sums", "topk.columns"):
            asked[table] = stack.enter_context(tuning.trying(table, {}))
        for form in FORMS[1:3]:
            evaluate(one_table(backend.contrast), [y[:, :12], q[:, :12], None, None], RANGE | form)
            evaluate(backend.contrast, [x, y, p, q, None, None], RANGE | form)
    kind = "float32 d=64 adaptive"
    assert asked == {
        "dense.forward": [f"{kind} few"],
        "dense.gradient": [f"{kind} {side} few" for side in ("one table", "rows", "columns")],
        "topk.scores": ["float32 d=16 rows"],
        "topk.sums": ["float32 d=16 one table", "float32 d=16 rows"],
        "topk.columns": ["float32 d=16 columns"],
    }


@pytest.mark.parametrize("form", FORMS[1:3], ids=NAMES[1:3])
def test_is_a_well_formed_operator(form):
    tensors = [t.float().to(DEVICE).requires_grad_() for t in inputs(1, 4, 70, 16)[:5]]
    of_tau, settings = (None, None, None, False), (False, 0.05, 2.0, 1e-2)
    torch.library.opcheck(backend._contrast, (*tensors, None, None, *of_tau, form["top_k"] or 70, *settings))
    table = tensors[1].detach()[:, :12].clone().requires_grad_()
    extra = torch.zeros(1, 12, device=DEVICE, requires_grad=True)
    one = (table, None, None, None, None, None, extra, *of_tau, form["top_k"] or 12)
    torch.library.opcheck(backend._contrast, (*one, *settings))


@pytest.mark.parametrize("form", FORMS[1:3], ids=NAMES[1:3])
def test_compiles_whole(form):
    tensors = [t.float().to(DEVICE) for t in inputs(1, 4, 70, 16)[:5]]

    def operator(*leaves, **settings):
        rows, stats = backend.contrast(*leaves, None, **settings)
        return rows * 2, stats

    compiled = torch.compile(operator, fullgraph=True, backend="aot_eager")
    found, expected = (evaluate(f, tensors, RANGE | form) for f in (compiled, operator))
    for key, value in found.items():
        assert torch.equal(value, expected[key]), key

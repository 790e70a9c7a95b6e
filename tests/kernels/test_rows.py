"""Rows of paired views: unit rows, casts and halves in one launch, against `amcl_fast.rows` in float64."""

import pytest
import torch

from amcl_fast import ops, rows
from amcl_fast.ops import triton_rows as backend
from tests.helpers.kernels.compare import DEVICE, relative_error

pytestmark = pytest.mark.slow

FLOOR = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
OUTPUTS = ("table", "product", "first", "second")


def views(n, heads, d, dtype, seed=0):
    """As projections arrive, (N, C, d), seen as (C, N, d)."""
    generator = torch.Generator().manual_seed(seed)
    both = (3 * torch.randn(n, heads, d, generator=generator, dtype=torch.float64) for _ in range(2))
    return [z.to(dtype).to(DEVICE).transpose(0, 1) for z in both]


def evaluate(operator, inputs, settings, left_out=()):
    """All outputs, and the gradients of the inputs under unequal weights of every output but those left out."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    made = operator(*leaves, **settings)._asdict()
    loss = 0.0
    for i, name in enumerate(OUTPUTS):
        if made[name] is not None and name not in left_out and made[name].requires_grad:
            generator = torch.Generator().manual_seed(i)
            weights = torch.randn(made[name].shape, generator=generator, dtype=torch.float64)
            loss = loss + (made[name].double() * weights.to(made[name].device)).sum()
    loss.backward()
    result = {name: t.detach() for name, t in made.items() if t is not None}
    return result | {f"gradient_{i}": t.grad for i, t in enumerate(leaves) if t is not None}


def check(inputs, settings, floor, left_out=()):
    found = evaluate(backend.prepared, inputs, settings, left_out)
    exact = [None if t is None else t.double() for t in inputs]
    left_out = {*left_out, *OUTPUTS} - {name for name in found if name not in left_out}
    expected = evaluate(rows.prepared, exact, settings | {"product": torch.float64}, left_out)
    asked = {"table"} if settings.get("table") else set()
    asked |= {"product"} if settings.get("product") else set()
    asked |= {"first", "second"} if settings.get("halves", "none") != "none" else set()
    asked |= {"skip"} if settings.get("skip") is not None else set()
    assert asked <= found.keys()
    for name, value in found.items():
        if name == "skip":
            assert torch.equal(value, expected[name])
            continue
        allowed = floor if name == "product" or name.startswith("gradient") else FLOOR[torch.float32]
        assert relative_error(value, expected[name]) <= allowed, name
    for name, value in evaluate(backend.prepared, inputs, settings, left_out).items():
        assert torch.equal(value, found[name]), f"{name} differs between two runs"
    return found


@pytest.mark.parametrize("product", FLOOR)
@pytest.mark.parametrize("dtype", FLOOR)
@pytest.mark.parametrize(("n", "heads", "d"), [(5, 3, 48), (70, 1, 16)])
def test_two_views(n, heads, d, dtype, product):
    settings = {"product": product, "table": True, "halves": "raw", "skip": 6}
    found = check(views(n, heads, d, dtype), settings, max(FLOOR[dtype], FLOOR[product]))
    assert found["product"].dtype == product and found["table"].dtype == torch.float32
    assert found["gradient_0"].dtype == dtype
    # As the projections lie, or what made them would copy.
    assert found["gradient_0"].transpose(0, 1).is_contiguous()


def test_rows_wider_than_a_block():
    settings = {"product": torch.bfloat16, "table": True, "halves": "raw", "skip": 0}
    check(views(2, 2, 2500, torch.float16), settings, FLOOR[torch.bfloat16])


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("product", [torch.float32, torch.bfloat16])
def test_the_halves_of_one_table(product, normalise):
    x = torch.cat(views(7, 2, 20, torch.float32), dim=1)
    settings = {"product": product, "halves": "ready", "factor": 2.0, "normalise": normalise}
    found = check([x, None], settings, FLOOR[product])
    assert ("table" in found) == (product == torch.float32)


def test_one_table_of_an_odd_number_of_rows():
    x = torch.cat(views(7, 2, 20, torch.float32), dim=1)[:, 1:]
    check([x, None], {"product": torch.bfloat16, "factor": 2.0}, FLOOR[torch.bfloat16])
    check([x.mT.contiguous().mT, None], {"product": torch.float32}, FLOOR[torch.float32])


@pytest.mark.parametrize("left_out", [("first",), ("second",), ("first", "second"), ("product",), ("table", "product")])
def test_outputs_that_nobody_differentiates(left_out):
    settings = {"product": torch.bfloat16, "table": True, "halves": "raw"}
    check(views(5, 2, 24, torch.float32), settings, FLOOR[torch.bfloat16], left_out)


def test_halves_without_tables():
    x = torch.cat(views(7, 2, 20, torch.float32), dim=1)
    found = check([x, None], {"halves": "ready", "factor": 2.0}, FLOOR[torch.float32], ("second",))
    assert found.keys() == {"first", "second", "gradient_0"}


@pytest.mark.parametrize("needed", [0, 1])
def test_a_view_without_gradient_gets_none(needed):
    settings = {"product": torch.bfloat16, "table": True, "halves": "raw"}
    pair = views(5, 2, 24, torch.float32)
    expected = evaluate(backend.prepared, pair, settings)[f"gradient_{needed}"]
    leaves = [t.detach().requires_grad_(i == needed) for i, t in enumerate(pair)]
    made = backend.prepared(*leaves, **settings)
    outputs = [made.table, made.product, (made.first, made.second)[needed]]
    weights = [torch.randn(t.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
               for i, t in zip((0, 1, 2 + needed), outputs, strict=True)]  # fmt: skip
    sum((t.double() * w.to(t.device)).sum() for t, w in zip(outputs, weights, strict=True)).backward()
    assert torch.equal(leaves[needed].grad, expected)
    assert leaves[1 - needed].grad is None


@pytest.mark.parametrize(
    ("size", "d"), [*((size, 16) for size in (0.0, 1e-30, 1e-13, 1e-11, 1e19, 1e30)), (3e38, 5000)]
)
def test_rows_of_any_size(size, d):
    """Each row by its own size; nothing beside it is touched."""
    pair = [(z.double().clamp(-1, 1) / 2).float() for z in views(4, 1, d, torch.float32)]
    pair[0][:, 1] *= size
    settings = {"product": torch.float32, "halves": "raw"}
    found = evaluate(backend.prepared, pair, settings)
    expected = evaluate(rows.prepared, [t.double() for t in pair], settings | {"product": torch.float64})
    for name in ("product", "gradient_0", "gradient_1"):
        # What comes back through a half is not divided by the norm.
        error = (found[name] - expected[name]).norm(dim=-1)
        assert (error <= 2e-6 * expected[name].norm(dim=-1) + 1e-42).all(), name


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible(bad):
    pair = views(4, 2, 16, torch.float32)
    pair[1][1, 2, 3] = bad
    table = backend.prepared(*pair, product=torch.float32).table
    assert table[1, 6].isnan().any() and table[0].isfinite().all() and table[1, :6].isfinite().all()


def test_is_a_well_formed_operator():
    x, y = (t.detach().requires_grad_() for t in views(5, 2, 16, torch.float32))
    torch.library.opcheck(backend._prepared, (x, y, 1.0, True, True, torch.float16, 1, 0))
    torch.library.opcheck(backend._prepared, (x, None, 2.0, True, True, None, 0, -1))
    table = torch.cat([x, y], dim=1).detach().requires_grad_()
    torch.library.opcheck(backend._prepared, (table, None, 2.0, False, False, None, 2, -1))


def test_float64_is_refused():
    pair = (t.double() for t in views(2, 1, 4, torch.float32))
    with pytest.raises(
        TypeError, match=r"tensors must be one of float32, bfloat16, float16 for backend 'triton', got torch.float64"
    ):
        ops.prepared(*pair, product=torch.float32, backend="triton")


def terms(joined, heads=3, n=37, size=10.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    positive = size * torch.randn(heads, n, generator=generator, dtype=torch.float64)
    negative = -torch.cat([positive, positive], 1) if joined else 0.0
    return positive, negative + size * torch.randn(heads, 2 * n, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize(("heads", "n", "size"), [(1, 2, 1.0), (3, 37, 10.0), (2, 1500, 3.0), (2, 9, 1e5)])
def test_total(joined, heads, n, size):
    positive, negative = (t.float().to(DEVICE).requires_grad_() for t in terms(joined, heads, n, size))
    found = backend.total(positive, negative, joined=joined, weight=0.25)
    grads = torch.autograd.grad(3 * found, (positive, negative))
    p, q = (t.detach().double().requires_grad_() for t in (positive, negative))
    both = torch.cat([p, p], dim=1)
    expected = 0.25 * (both + (torch.logaddexp(q, -both) if joined else q)).sum()
    right = torch.autograd.grad(3 * expected, (p, q))
    scale = 0.25 * (both.detach().abs() + q.detach().abs()).sum() if not joined else expected.detach()
    assert abs(found.detach().double() - expected.detach()) <= 1e-6 * scale
    for a, b in zip(grads, right, strict=True):
        assert relative_error(a, b) <= 1e-6


def test_the_total_is_small_where_every_positive_wins():
    """log(1 + e^−40), of terms near 1e3: their difference in float32 would be 0."""
    positive = torch.full((1, 2), -1000.0, device=DEVICE)
    negative = torch.full((1, 4), 960.0, device=DEVICE)
    found = backend.total(positive, negative, joined=True, weight=1.0)
    assert found.item() == pytest.approx(4 * torch.tensor(-40.0, dtype=torch.float64).exp().item(), rel=1e-5, abs=0)


@pytest.mark.parametrize("joined", [True, False])
def test_a_term_that_is_nan_makes_the_total_nan(joined):
    for i in range(2):
        given = [t.float().to(DEVICE) for t in terms(joined)]
        given[i][1, 5] = float("nan")
        assert backend.total(*given, joined=joined, weight=1.0).isnan()


@pytest.mark.parametrize("joined", [True, False])
def test_total_is_a_well_formed_operator(joined):
    given = tuple(t.float().to(DEVICE).requires_grad_() for t in terms(joined, 2, 5))
    torch.library.opcheck(backend._total, (*given, joined, 0.5))

"""The CPU engine against the reference: values, statistics and every gradient, on each instruction set."""

import pytest
import torch
import torch.nn.functional as F

from amcl_fast import capabilities, reference

if not capabilities.native_status().available:
    pytest.skip(f"native module: {capabilities.native_status().reason}", allow_module_level=True)

from amcl_fast import _native
from amcl_fast.ops import engine, native

DTYPES = {torch.float64: 1e-10, torch.float32: 2e-5}
FORMS = reference.NEGATIVES
# heads, anchors, candidates, width, width of φ, skipped columns, k: one of everything; ragged; more than one
# tile of columns and block of rows; k above the negatives; k = 1; constant temperature; MoCo-like.
SHAPES = [
    (1, 1, 1, 1, 1, 0, 1),
    (2, 7, 13, 5, 3, 2, 3),
    (3, 130, 257, 17, 33, 2, 100),
    (2, 33, 2500, 130, 128, 1, 100),
    (1, 700, 40, 9, 12, 3, 1),
    (3, 700, 90, 8, 8, 2, 20),
    (2, 30, 21, 8, 8, 2, 1000),
    (2, 40, 60, 16, 0, 2, 20),
    (2, 6, 5000, 32, 16, 0, 64),
]


@pytest.fixture(params=_native.instruction_sets())
def instruction_set(request):
    _native.use_instruction_set(request.param)
    yield request.param
    _native.use_instruction_set(_native.instruction_sets()[0])


@pytest.fixture(params=["torch's BLAS", "plain loops"])
def blas(request):
    if request.param == "plain loops":
        _native.use_blas(0, 0, 0)
    yield
    engine.connect_blas()


def rows(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def contrast_case(shape, dtype=torch.float64, seed=0):
    """Arguments and settings of a call; settings lack `negatives`."""
    heads, anchors, candidates, width, phi_width, skipped, top_k = shape
    g = torch.Generator().manual_seed(seed)
    tensors = [F.normalize(rows(g, heads, n, width), dim=-1) for n in (anchors, candidates)]
    if phi_width:
        tensors += [0.5 * rows(g, heads, n, phi_width) for n in (anchors, candidates)]
        tensors += [torch.tensor(0.3, dtype=torch.float64)]
    else:
        tensors += [None, None, None]
    skip = None
    if skipped:
        skip = torch.stack([torch.randperm(candidates, generator=g)[:skipped] for _ in range(anchors)])
    tau_max = 1.5 if phi_width else 0.1
    settings = {"tau_min": 0.1, "tau_max": tau_max, "top_k": top_k, "beta": 0.01}
    return [None if t is None else t.to(dtype) for t in tensors] + [skip], settings


def evaluate(operator, tensors, settings, weights=None):
    """Values, all statistics, and the gradients of Σ weights · values by every floating tensor."""
    tensors = [t.detach().requires_grad_() if t is not None and t.is_floating_point() else t for t in tensors]
    values, *stats = operator(*tensors, **settings)
    weights = torch.ones_like(values) if weights is None else weights.to(values.dtype)
    inputs = [t for t in tensors if t is not None and t.is_floating_point()]
    gradients = torch.autograd.grad((values * weights).sum(), inputs)
    return values.detach(), [s for part in stats for s in part.items()], gradients


def assert_same(found, expected, tolerance):
    values, stats, gradients = found
    expected_values, expected_stats, expected_gradients = expected
    for a, b in zip((values, *gradients), (expected_values, *expected_gradients), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert (a - b).norm() <= tolerance * b.norm()
    assert [name for name, _ in stats] == [name for name, _ in expected_stats]
    for (name, a), (_, b) in zip(stats, expected_stats, strict=True):
        assert a.shape == ()
        assert not a.requires_grad
        # The reference's own variance has this much rounding.
        torch.testing.assert_close(a, b, rtol=100 * tolerance, atol=1e-8 + tolerance, equal_nan=True, msg=name)


def random_like(values_shape, seed=1):
    return torch.rand(values_shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items(), ids=["f64", "f32"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_contrast(shape, form, dtype, tolerance, instruction_set):
    tensors, settings = contrast_case(shape, dtype)
    settings["negatives"] = form
    weights = random_like(shape[:2])
    found = evaluate(native.contrast, tensors, settings, weights)
    assert_same(found, evaluate(reference.contrast, tensors, settings, weights), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items(), ids=["f64", "f32"])
@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("shape", SHAPES[1:4], ids=str)
@pytest.mark.parametrize("equal", [True, False], ids=["equal weights", "weights"])
def test_contrast_with_an_extra_logit(shape, form, dtype, tolerance, equal):
    tensors, settings = contrast_case(shape, dtype)
    settings["negatives"] = form
    # From far below the negatives' log-sum-exp to far above it.
    extra = (40 * random_like(shape[:2], seed=2) - 10).to(dtype)
    weights = None if equal else random_like(shape[:2])

    def with_extra(operator):
        return lambda *tensors, **settings: operator(*tensors[:6], extra=tensors[6], **settings)

    found = evaluate(with_extra(native.contrast), [*tensors, extra], settings, weights)
    assert_same(found, evaluate(with_extra(reference.contrast), [*tensors, extra], settings, weights), tolerance)


@pytest.mark.parametrize("form", FORMS)
def test_contrast_with_plain_products(form, blas):
    tensors, settings = contrast_case((2, 33, 70, 17, 9, 2, 10))
    settings["negatives"] = form
    found = evaluate(native.contrast, tensors, settings)
    assert_same(found, evaluate(reference.contrast, tensors, settings), 1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_contrast_of_one_set_with_itself(form):
    """SimCLR: anchors and candidates are one tensor, so both of its roles send it gradients."""
    g = torch.Generator().manual_seed(0)
    z, phi = F.normalize(rows(g, 2, 40, 16), dim=-1), rows(g, 2, 40, 8)
    index = torch.arange(40)
    skip = torch.stack([index, (index + 20) % 40], dim=1)
    settings = {"tau_min": 0.1, "tau_max": 1.0, "negatives": form, "top_k": 7, "beta": 0.1}

    def on_one_set(operator):
        return lambda z, phi: operator(z, z, phi, phi, None, skip, **settings)

    found = evaluate(on_one_set(native.contrast), [z, phi], {})
    assert_same(found, evaluate(on_one_set(reference.contrast), [z, phi], {}), 1e-10)


@pytest.mark.parametrize("columns", [50, 6000], ids=["one tile", "several tiles"])
@pytest.mark.parametrize("top_k", [1, 5, 33])
@pytest.mark.parametrize("copies", [3, 50], ids=["ties", "all equal"])
def test_ties_go_to_the_lowest_column(columns, top_k, copies, instruction_set):
    """Distinct φ tell which of the equal similarities was taken."""
    g = torch.Generator().manual_seed(0)
    candidates = F.normalize(rows(g, 1, -(-columns // copies), 8), dim=-1).repeat(1, copies, 1)[:, :columns]
    if copies == 50:
        candidates = candidates[:, :1].expand(1, columns, 8)
    tensors = [
        F.normalize(rows(g, 1, 9, 8), dim=-1),
        candidates,
        rows(g, 1, 9, 4),
        rows(g, 1, columns, 4),
        None,
    ]
    tensors += [torch.arange(9)[:, None]]
    settings = {"tau_min": 0.1, "tau_max": 1.0, "negatives": "topk_mean", "top_k": top_k, "beta": 0.1}
    # Single precision: a product's bits could differ between places, and a tie would not be one.
    tensors = [t.float() if t is not None and t.is_floating_point() else t for t in tensors]
    tensors[0], tensors[1] = (8 * tensors[0]).round() / 8, (8 * tensors[1]).round() / 8
    found = evaluate(native.contrast, tensors, settings)
    assert_same(found, evaluate(reference.contrast, tensors, settings), 2e-5)


def test_signed_zeros_are_equal(instruction_set):
    candidates = torch.zeros(1, 40, 4)
    candidates[0, ::2] = -0.0
    tensors = [torch.ones(1, 3, 4), candidates, torch.randn(1, 3, 4), torch.randn(1, 40, 4), None, None]
    settings = {"tau_min": 0.1, "tau_max": 1.0, "negatives": "topk_mean", "top_k": 7, "beta": 0.1}
    assert_same(evaluate(native.contrast, tensors, settings), evaluate(reference.contrast, tensors, settings), 2e-5)


def orderings(n):
    g = torch.Generator().manual_seed(0)
    ramp = torch.linspace(-1, 1, n)
    yield "ascending", ramp
    yield "descending", ramp.flip(0)
    yield "two values", (torch.rand(n, generator=g) < 0.02).float()
    yield "one outlier", torch.cat([torch.full((n - 1,), -1.0), torch.ones(1)])
    yield "many scales", 10.0 ** (-30 * torch.rand(n, generator=g))
    yield (
        "neighbours",
        torch.ones(n).view(torch.int32).add(torch.arange(n, dtype=torch.int32) % 5).view(torch.float32),
    )


@pytest.mark.parametrize(("name", "similarity"), list(orderings(5000)), ids=lambda p: p if isinstance(p, str) else "")
@pytest.mark.parametrize("top_k", [1, 100, 2400])
def test_selection_of_awkward_rows(name, similarity, top_k, instruction_set):
    """With d = 1 and an anchor of 1, the similarities are what the test says; φ tells the columns apart."""
    similarity = similarity[None, :, None].contiguous()
    phi = torch.randn(1, 5000, 2, generator=torch.Generator().manual_seed(0))
    tensors = [torch.ones(1, 2, 1), similarity, torch.ones(1, 2, 2), phi, None, None]
    settings = {"tau_min": 0.5, "tau_max": 1.0, "negatives": "topk_mean", "top_k": top_k, "beta": 0.0}
    found = evaluate(native.contrast, tensors, settings)
    assert_same(found, evaluate(reference.contrast, tensors, settings), 2e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tau_min", [1e-5, 1e-3])
def test_extreme_temperatures(form, tau_min):
    """φ·φ from −200 to 200: every τ at one end or the other, 1/τ up to 1e5."""
    tensors, settings = contrast_case((2, 40, 70, 16, 16, 2, 20))
    tensors[2] *= 20
    settings |= {"negatives": form, "tau_min": tau_min, "tau_max": 2.0, "beta": 1e-4}
    weights = random_like((2, 40))
    found = evaluate(native.contrast, tensors, settings, weights)
    assert_same(found, evaluate(reference.contrast, tensors, settings, weights), 1e-10)
    single = evaluate(native.contrast, [t.float() if t.is_floating_point() else t for t in tensors], settings)
    assert all(t.isfinite().all() for t in (single[0], *single[2]))


@pytest.mark.parametrize("form", FORMS)
def test_free_strides(form):
    """Views of any layout, MoCo's queue (heads, width, columns) among them, give what their copies give."""
    g = torch.Generator().manual_seed(0)
    anchors = F.normalize(rows(g, 20, 2, 8), dim=-1).transpose(0, 1)
    queue = F.normalize(rows(g, 2, 8, 50), dim=1).mT
    phi_anchors = rows(g, 2, 20, 12)[..., ::2]
    phi_candidates = rows(g, 1, 50, 6).expand(2, 50, 6)
    skip = torch.randint(0, 50, (1, 20), generator=g).T
    settings = {"tau_min": 0.1, "tau_max": 1.0, "negatives": form, "top_k": 7, "beta": 0.1}
    views = [anchors, queue, phi_anchors, phi_candidates, None, skip]
    copies = [None if t is None else t.contiguous() for t in views]
    found = evaluate(native.contrast, views, settings)
    assert_same(found, evaluate(reference.contrast, copies, settings), 1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_upstream_gradient_of_any_layout(form):
    tensors, settings = contrast_case((2, 30, 50, 8, 8, 2, 7))
    settings["negatives"] = form
    tensors = [t.requires_grad_() if t.is_floating_point() else t for t in tensors]
    for reduce in (
        lambda v: v.mean(),
        lambda v: v[:, ::2].sum(),
        lambda v: v[0].sum(),
        lambda v: (v**2).mean(1).sum(),
    ):
        found = torch.autograd.grad(reduce(native.contrast(*tensors, **settings)[0]), tensors[:5])
        expected = torch.autograd.grad(reduce(reference.contrast(*tensors, **settings)[0]), tensors[:5])
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (4,), (0, 3), (1, 2)])
def test_only_wanted_gradients(form, wanted):
    tensors, settings = contrast_case((2, 30, 50, 8, 6, 2, 7))
    settings["negatives"] = form
    weights = random_like((2, 30))

    def gradients(operator):
        leaves = [t.detach().requires_grad_(i in wanted) if i < 5 else t for i, t in enumerate(tensors)]
        (operator(*leaves, **settings)[0] * weights).sum().backward()
        return [t.grad for t in leaves[:5]]

    for i, (a, b) in enumerate(zip(gradients(native.contrast), gradients(reference.contrast), strict=True)):
        assert (a is not None) == (b is not None) == (i in wanted)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def paired_case(operator, heads=2, n=7, width=5, phi_width=3, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    tensors = [rows(g, heads, n, width), rows(g, heads, n, width)]
    if phi_width:
        tensors += [
            0.5 * rows(g, heads, n, phi_width),
            0.5 * rows(g, heads, n, phi_width),
            torch.tensor(0.3).double(),
        ]
    else:
        tensors += [None, None, None]
    settings = {"tau_min": 0.1, "tau_max": 1.5 if phi_width else 0.1, "beta": 0.01}
    settings |= {"weight": 0.5} if operator == "align" else {"lambd": 5e-3}
    return [None if t is None else t.to(dtype) for t in tensors], settings


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.items(), ids=["f64", "f32"])
@pytest.mark.parametrize(
    "shape", [(1, 2, 3, 1), (2, 7, 5, 3), (3, 130, 33, 17), (1, 64, 130, 0), (2, 600, 9, 4)], ids=str
)
@pytest.mark.parametrize("operator", ["align", "decorrelate"])
def test_paired_operators(operator, shape, dtype, tolerance, instruction_set):
    tensors, settings = paired_case(operator, *shape, dtype=dtype)
    weights = random_like(shape[:2] if operator == "align" else shape[:1])
    found = evaluate(getattr(native, operator), tensors, settings, weights)
    assert_same(found, evaluate(getattr(reference, operator), tensors, settings, weights), tolerance)


@pytest.mark.parametrize("operator", ["align", "decorrelate"])
def test_paired_operators_on_views(operator):
    tensors, settings = paired_case(operator, 2, 10, 10, 10)
    views = [t.mT for t in tensors[:4]] + tensors[4:]
    found = evaluate(getattr(native, operator), views, settings)
    assert_same(found, evaluate(getattr(reference, operator), views, settings), 1e-10)


@pytest.mark.filterwarnings("ignore:std\\(\\)")
def test_one_channel_has_no_pairs():
    tensors, settings = paired_case("decorrelate", 1, 1, 5, 3)
    found, on, off = native.decorrelate(*tensors, **settings)
    torch.testing.assert_close(found, reference.decorrelate(*tensors, **settings)[0])
    assert on["tau_mean"].isfinite()
    assert all(value.isnan() for value in off.values())


def test_align_of_vectors_without_direction():
    """A zero vector is divided by the smallest norm, as torch.nn.functional.normalize does."""
    tensors, settings = paired_case("align")
    tensors[0][0, 0] = 0
    tensors[1][1, 1] *= 1e-14
    found = evaluate(native.align, tensors, settings)
    assert_same(found, evaluate(reference.align, tensors, settings), 1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_of_contrast(form):
    tensors, settings = contrast_case((2, 4, 7, 3, 3, 2, 3))
    *floats, skip = tensors
    settings["negatives"] = form
    inputs = [t.requires_grad_() for t in floats]
    assert torch.autograd.gradcheck(lambda *t: native.contrast(*t, skip, **settings)[0], inputs)


@pytest.mark.parametrize("operator", ["align", "decorrelate"])
def test_gradcheck_of_paired_operators(operator):
    tensors, settings = paired_case(operator, 2, 4, 3, 3)
    inputs = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(lambda *t: getattr(native, operator)(*t, **settings)[0], inputs)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def bits(result):
    values, stats, gradients = result
    return [values, *(value for _, value in stats), *gradients]


@pytest.mark.parametrize("case", [*FORMS, "align", "decorrelate"])
def test_same_bits_for_any_number_of_threads(case, threads):
    if case in FORMS:
        # Enough rows for several blocks, more than one tile of columns, and not a multiple of anything.
        tensors, settings = contrast_case((3, 701, 2309, 40, 24, 2, 50), torch.float32)
        settings["negatives"] = case
        operator, shape = native.contrast, (3, 701)
    else:
        tensors, settings = paired_case(case, 3, 333, 700, 129, torch.float32)
        operator, shape = getattr(native, case), (3, 333) if case == "align" else (3,)
    weights = random_like(shape)
    results = []
    for count in (1, 2, 3, 1):
        threads(count)
        results.append(bits(evaluate(operator, tensors, settings, weights)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("position", "bad"), [(0, float("nan")), (1, float("nan")), (0, float("inf"))])
def test_what_is_not_finite_shows(form, position, bad):
    tensors, settings = contrast_case((1, 5, 40, 8, 8, 0, 3))
    tensors[position][0, 2, 1] = bad
    values, stats = native.contrast(*tensors, **settings, negatives=form)
    assert not values[0, 2].isfinite()
    assert not stats["similarity"].isfinite()


def test_forward_without_gradients_keeps_nothing():
    tensors, settings = contrast_case((2, 30, 50, 8, 8, 2, 7))
    with torch.no_grad():
        values, _ = native.contrast(*tensors, **settings, negatives="topk_mean")
    assert not values.requires_grad
    torch.testing.assert_close(values, reference.contrast(*tensors, **settings, negatives="topk_mean")[0])


def test_large_batch_stays_small():
    """N = 4096 of SimCLR would need 268 MB for one similarity matrix of one head; here 40 MB suffice."""
    import resource

    g = torch.Generator().manual_seed(0)
    z = F.normalize(torch.randn(1, 8192, 16, generator=g), dim=-1)
    index = torch.arange(8192)
    skip = torch.stack([index, (index + 4096) % 8192], dim=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tensors = [z, z, z, z, None, skip]
    settings = {"tau_min": 0.1, "tau_max": 1.0, "negatives": "topk_mean", "top_k": 100, "beta": 0.1}
    evaluate(native.contrast, tensors, settings)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60 * 1024


def test_inside_a_compiled_function():
    tensors, settings = contrast_case((2, 30, 50, 8, 8, 2, 7))
    settings["negatives"] = "topk_mean"
    leaves = [t.requires_grad_() for t in tensors[:5]]

    def loss(scale):
        return native.contrast(leaves[0] * scale, *leaves[1:], tensors[5], **settings)[0].sum()

    expected = torch.autograd.grad(loss(2.0), leaves)
    found = torch.autograd.grad(torch.compile(loss, backend="aot_eager")(2.0), leaves)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_unknown_instruction_set():
    with pytest.raises(ValueError, match="instruction set 'mmx' is not available"):
        _native.use_instruction_set("mmx")


@pytest.mark.parametrize("constant", [False, True], ids=["adaptive", "constant"])
def test_are_well_formed_operators(constant):
    tensors, _ = contrast_case((2, 8, 8, 6, 0 if constant else 4, 2, 3))
    leaves = [t.requires_grad_() if t is not None and t.is_floating_point() else t for t in tensors]
    temperature = (0.1, 0.0, 0.0) if constant else (0.1, 1.4, 0.01)
    wanted = [t is not None for t in leaves[:5]]
    torch.library.opcheck(native._contrast_topk, (*leaves, False, 3, *temperature, True))
    torch.library.opcheck(native._contrast_topk, (*leaves[:5], None, True, 8, *temperature, True))
    extra = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    for more in (None, extra):
        torch.library.opcheck(native._contrast_softmax, (*leaves, more, *temperature, wanted))
    torch.library.opcheck(native._align, (*leaves[:5], 0.5, *temperature))
    torch.library.opcheck(native._decorrelate, (*leaves[:5], 5e-3, *temperature, wanted))

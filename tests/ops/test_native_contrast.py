"""The contrast of the CPU engine against the reference: values, statistics and every gradient."""

import pytest
import torch
import torch.nn.functional as F

from amcl_fast import capabilities, reference
from tests.helpers.contrast import with_extra
from tests.helpers.native import (
    DTYPES,
    FORMS,
    SHAPES,
    assert_same,
    contrast_case,
    evaluate,
    normal,
    random_like,
)

if not capabilities.native_status().available:
    pytest.skip(f"native module: {capabilities.native_status().reason}", allow_module_level=True)

from amcl_fast import _native
from amcl_fast.ops import engine, native


@pytest.fixture(params=["torch's BLAS", "plain loops"])
def blas(request):
    if request.param == "plain loops":
        _native.use_blas(0, 0, 0)
    yield
    engine.connect_blas()


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
    z, phi = F.normalize(normal(g, 2, 40, 16), dim=-1), normal(g, 2, 40, 8)
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
    candidates = F.normalize(normal(g, 1, -(-columns // copies), 8), dim=-1).repeat(1, copies, 1)[:, :columns]
    if copies == 50:
        candidates = candidates[:, :1].expand(1, columns, 8)
    tensors = [
        F.normalize(normal(g, 1, 9, 8), dim=-1),
        candidates,
        normal(g, 1, 9, 4),
        normal(g, 1, columns, 4),
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
    anchors = F.normalize(normal(g, 20, 2, 8), dim=-1).transpose(0, 1)
    queue = F.normalize(normal(g, 2, 8, 50), dim=1).mT
    phi_anchors = normal(g, 2, 20, 12)[..., ::2]
    phi_candidates = normal(g, 1, 50, 6).expand(2, 50, 6)
    skip = torch.randint(0, 50, (1, 20), generator=g).T
    settings = {"tau_min": 0.1, "tau_max": 1.0, "negatives": form, "top_k": 7, "beta": 0.1}
    views = [anchors, queue, phi_anchors, phi_candidates, None, skip]
    copies = [None if t is None else t.contiguous() for t in views]
    found = evaluate(native.contrast, views, settings)
    assert_same(found, evaluate(reference.contrast, copies, settings), 1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_gradient_of_any_layout(form):
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
@pytest.mark.parametrize("needs", [(0,), (1,), (2,), (3,), (4,), (0, 3), (1, 2)])
def test_only_needed_gradients(form, needs):
    tensors, settings = contrast_case((2, 30, 50, 8, 6, 2, 7))
    settings["negatives"] = form
    weights = random_like((2, 30))

    def gradients(operator):
        leaves = [t.detach().requires_grad_(i in needs) if i < 5 else t for i, t in enumerate(tensors)]
        (operator(*leaves, **settings)[0] * weights).sum().backward()
        return [t.grad for t in leaves[:5]]

    for i, (a, b) in enumerate(zip(gradients(native.contrast), gradients(reference.contrast), strict=True)):
        assert (a is not None) == (b is not None) == (i in needs)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)

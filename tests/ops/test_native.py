"""The CPU engine: paired operators against the reference, derivatives, threads, memory, torch.library."""

import pytest
import torch
import torch.nn.functional as F

from amcl_fast import capabilities, reference
from tests.helpers.native import (
    DTYPES,
    FORMS,
    assert_same,
    contrast_case,
    evaluate,
    paired_case,
    random_like,
)

if not capabilities.native_status().available:
    pytest.skip(f"native module: {capabilities.native_status().reason}", allow_module_level=True)

from amcl_fast import _native
from amcl_fast.ops import native


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
    rows, stats, gradients = result
    return [rows, *(value for _, value in stats), *gradients]


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
    rows, stats = native.contrast(*tensors, **settings, negatives=form)
    assert not rows[0, 2].isfinite()
    assert not stats["similarity"].isfinite()


def test_forward_without_gradients_keeps_nothing():
    tensors, settings = contrast_case((2, 30, 50, 8, 8, 2, 7))
    with torch.no_grad():
        rows, _ = native.contrast(*tensors, **settings, negatives="topk_mean")
    assert not rows.requires_grad
    torch.testing.assert_close(rows, reference.contrast(*tensors, **settings, negatives="topk_mean")[0])


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
    with pytest.raises(ValueError, match=r"must be one of .*generic on this processor, got 'mmx'"):
        _native.use_instruction_set("mmx")


@pytest.mark.parametrize("constant", [False, True], ids=["adaptive", "constant"])
def test_are_well_formed_operators(constant):
    tensors, _ = contrast_case((2, 8, 8, 6, 0 if constant else 4, 2, 3))
    leaves = [t.requires_grad_() if t is not None and t.is_floating_point() else t for t in tensors]
    temperature = (0.1, 0.0, 0.0) if constant else (0.1, 1.4, 0.01)
    needs = [t is not None for t in leaves[:5]]
    none = (None, None, None)
    torch.library.opcheck(native._contrast_topk, (*leaves, *none, False, 3, *temperature, True))
    torch.library.opcheck(native._contrast_topk, (*leaves[:5], None, *none, True, 8, *temperature, True))
    extra = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    for more in (None, extra):
        torch.library.opcheck(native._contrast_softmax, (*leaves, more, None, *temperature, [*needs, False]))
    torch.library.opcheck(native._align, (*leaves[:5], 0.5, *temperature))
    torch.library.opcheck(native._decorrelate, (*leaves[:5], 5e-3, *temperature, needs))

import pytest
import torch

from amcl_fast import ops, reference
from amcl_fast.ops import triton as backend
from tests.helpers.kernels.compare import DEVICE, check, evaluate

pytestmark = pytest.mark.slow

SETTINGS = {"tau_min": 1e-2, "tau_max": 2.0, "weight": 0.5, "beta": 1e-2}
CONSTANT = {"tau_min": 0.5, "tau_max": 0.5, "weight": 1.0, "beta": 0.1}


def inputs(heads, n, d, m=None, offset=0.3):
    generator = torch.Generator().manual_seed(n * d)
    x, y = (3 * torch.randn(heads, n, d, generator=generator, dtype=torch.float64) for _ in range(2))
    phi = [torch.randn(heads, n, m or d, generator=generator, dtype=torch.float64) / d**0.25 for _ in range(2)]
    return [x, y, *phi, None if offset is None else torch.tensor(offset, dtype=torch.float64)]


@pytest.mark.parametrize(("heads", "n", "d", "m"), [(1, 1, 2, 2), (3, 37, 48, 48), (2, 5, 130, 20), (1, 3, 2500, 2500)])
def test_adaptive(heads, n, d, m):
    check("align", inputs(heads, n, d, m), SETTINGS)


@pytest.mark.parametrize(("heads", "n", "d"), [(1, 2, 16), (3, 37, 48), (1, 3, 2500)])
def test_constant(heads, n, d):
    x, y, *_ = inputs(heads, n, d)
    check("align", [x, y, None, None, None], CONSTANT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    check("align", inputs(2, 9, 64), SETTINGS, dtype)


def test_released_range_without_offset():
    tensors = inputs(2, 9, 32, offset=None)
    tensors[2:4] = [4 * t for t in tensors[2:4]]
    check("align", tensors, SETTINGS | {"tau_min": 1e-5, "beta": 1e-4})


def test_strided():
    x, y, p, q, offset = inputs(2, 6, 24)
    expected = evaluate(backend.align, [t.float().to(DEVICE) for t in (x, y, p, q, offset)], SETTINGS)
    turned = [t.float().to(DEVICE).mT.contiguous().mT for t in (x, y)]
    heads_inside = [t.float().to(DEVICE).transpose(0, 1).contiguous().transpose(0, 1) for t in (p, q)]
    found = evaluate(backend.align, [*turned, *heads_inside, offset.float().to(DEVICE)], SETTINGS)
    for key, value in found.items():
        assert torch.equal(value, expected[key]), key


def test_zero_vectors():
    x, y, *_ = inputs(1, 4, 16)
    x[0, 1], y[0, 2] = 0, 0
    check("align", [x, y, None, None, None], CONSTANT)


@pytest.mark.parametrize("d", [16, 5000])
def test_vectors_too_long_to_be_squared(d):
    x, y, p, q, offset = inputs(1, 6, d)
    x[0, 1], x[0, 2], y[0, 2], y[0, 3] = x[0, 1] * 1e19, x[0, 2] * 1e36, y[0, 2] * 1e30, y[0, 3] * 1e25
    check("align", [x, y, p, q, offset], SETTINGS)
    found = evaluate(backend.align, [t.float().to(DEVICE) for t in (x, y, p, q, offset)], SETTINGS)
    expected = evaluate(reference.align, [x, y, p, q, offset], SETTINGS)
    for key in ("gradient_0", "gradient_1"):  # row by row: they differ by 36 orders of magnitude
        error = (found[key].cpu() - expected[key]).norm(dim=-1)
        assert (error <= 1e-5 * expected[key].norm(dim=-1) + 1e-42).all()


def test_only_needed_gradients():
    x, y, p, q, _ = (t.float().to(DEVICE) for t in inputs(1, 4, 16))
    x.requires_grad_()
    backend.align(x, y, p, q, None, **SETTINGS)[0].sum().backward()
    assert x.grad is not None
    assert y.grad is None


def test_float64_is_refused():
    with pytest.raises(
        TypeError, match=r"x must be one of float32, bfloat16, float16 for backend 'triton', got torch.float64"
    ):
        ops.align(*inputs(1, 4, 16), **SETTINGS, backend="triton")


def test_is_a_well_formed_operator():
    x, y, p, q, offset = (t.float().to(DEVICE).requires_grad_() for t in inputs(2, 5, 16))
    torch.library.opcheck(backend._align, (x, y, p, q, offset, 1e-2, 2.0, 0.5, 1e-2))
    torch.library.opcheck(backend._align, (x, y, None, None, None, 0.5, 0.5, 0.5, 0.0))


def test_compiles_whole():
    tensors = [t.float().to(DEVICE) for t in inputs(2, 5, 16)]

    def operator(*leaves, **settings):
        rows, stats = backend.align(*leaves, **settings)
        return rows * 2, stats

    compiled = torch.compile(operator, fullgraph=True, backend="aot_eager")
    found, expected = (evaluate(f, tensors, SETTINGS) for f in (compiled, operator))
    for key, value in found.items():
        assert torch.equal(value, expected[key]), key

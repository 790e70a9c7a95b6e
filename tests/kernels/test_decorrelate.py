import pytest
import torch
from amcl_fast.kernels import decorrelate
from compare import DEVICE, check, evaluate

from amcl_fast.ops import triton as backend

SETTINGS = {"tau_min": 0.05, "tau_max": 2.0, "lambd": 5e-3, "beta": 1e-4}
CONSTANT = SETTINGS | {"tau_min": 1.0, "tau_max": 1.0}


def inputs(heads, d, batch, offset=0.2):
    generator = torch.Generator().manual_seed(d)
    x = torch.randn(heads, d, batch, generator=generator, dtype=torch.float64)
    y = x + 0.5 * torch.randn(heads, d, batch, generator=generator, dtype=torch.float64)
    x, y = ((z - z.mean(-1, keepdim=True)) / z.std(-1, keepdim=True) for z in (x, y))
    phi = [torch.randn(heads, d, batch, generator=generator, dtype=torch.float64) / batch**0.25 for _ in range(2)]
    return [x, y, *phi, None if offset is None else torch.tensor(offset, dtype=torch.float64)]


@pytest.mark.parametrize(("heads", "d", "batch"), [(2, 70, 20), (1, 24, 75)])
def test_adaptive(heads, d, batch):
    check("decorrelate", inputs(heads, d, batch), SETTINGS)


def test_constant():
    x, y, *_ = inputs(2, 70, 20)
    check("decorrelate", [x, y, None, None, None], CONSTANT)


def test_released_range_without_offset():
    tensors = inputs(1, 40, 16, offset=None)
    tensors[2:4] = [3 * t for t in tensors[2:4]]
    check("decorrelate", tensors, SETTINGS | {"tau_min": 1e-5, "beta": 1e-6})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    check("decorrelate", inputs(1, 40, 32), SETTINGS, dtype)


def test_rows_in_strips(monkeypatch):
    monkeypatch.setattr(decorrelate, "WORKSPACE", 0)
    check("decorrelate", inputs(2, 70, 20), SETTINGS)


def test_transposed():
    tensors = [t.float().to(DEVICE) for t in inputs(1, 40, 16)]
    expected = evaluate(backend.decorrelate, tensors, SETTINGS)
    turned = [t.mT.contiguous().mT for t in tensors[:4]]
    found = evaluate(backend.decorrelate, [*turned, tensors[4]], SETTINGS)
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6)


def test_only_wanted_gradients():
    x, y, p, q, offset = (t.float().to(DEVICE) for t in inputs(1, 24, 16))
    y.requires_grad_()
    offset.requires_grad_()
    backend.decorrelate(x, y, p, q, offset, **SETTINGS)[0].sum().backward()
    assert y.grad is not None
    assert offset.grad is not None
    assert x.grad is None


def test_is_a_well_formed_operator():
    tensors = [t.float().to(DEVICE).requires_grad_() for t in inputs(1, 24, 16)]
    for leaves in (tensors, [*tensors[:2], None, None, None]):
        torch.library.opcheck(backend._decorrelate, (*leaves, 0.05, 2.0, 5e-3, 1e-4))


def test_compiles_whole():
    tensors = [t.float().to(DEVICE) for t in inputs(1, 24, 16)]

    def operator(*leaves, **settings):
        heads, on, off = backend.decorrelate(*leaves, **settings)
        return heads * 2, on, off

    compiled = torch.compile(operator, fullgraph=True, backend="aot_eager")
    found, expected = (evaluate(f, tensors, SETTINGS) for f in (compiled, operator))
    for key, value in found.items():
        assert torch.equal(value, expected[key]), key

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from amcl_fast import reference
from amcl_fast.kernels import decorrelate, tuning
from amcl_fast.ops import triton as backend
from amcl_fast.ops.tensors import needed
from tests.helpers.kernels.compare import DEVICE, check, evaluate, relative_error

pytestmark = pytest.mark.slow

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


@pytest.mark.parametrize(("heads", "d", "dtype"), [(3, 40, torch.float32), (1, 150, torch.bfloat16)])
def test_strips(heads, d, dtype, monkeypatch):
    """Each head alone; and three strips down and across, the last ones smaller."""
    monkeypatch.setattr(decorrelate, "WORKSPACE", 0)
    monkeypatch.setattr(decorrelate, "_SIDE", 64)
    assert decorrelate._strips(torch.empty(heads, d, 20), True) == (1, min(d, 64), min(d, 64))
    with tuning.trying("decorrelate.elements", {"BLOCK": 64, "M": 32}):
        check("decorrelate", inputs(heads, d, 20), SETTINGS, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_longer_than_a_block(dtype):
    """Slopes of half the size go where other blocks of the same row were."""
    with tuning.trying("decorrelate.elements", {"BLOCK": 16, "M": 32}) as asked:
        check("decorrelate", inputs(1, 60, 20), SETTINGS, dtype)
    assert asked == [f"{str(dtype).removeprefix('torch.')} adaptive, 512 columns"]


def test_sides_of_strips_are_a_choice_within_the_workspace():
    x = torch.empty(1, 8192, 1)
    with tuning.trying("decorrelate.strips", {"ROWS": 1024, "COLUMNS": 4096}) as asked:
        assert decorrelate._strips(x, True) == (1, 1024, 4096)
    assert asked == ["float32 adaptive"]
    with tuning.trying("decorrelate.strips", {"ROWS": 8192, "COLUMNS": 8192}):
        _, height, width = decorrelate._strips(x, True)
        assert height % 128 == 0 and 40e6 < 8 * height * width <= 50e6


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize(("heads", "d"), [(1, 8192), (3, 2048), (8, 512), (1, 100_000), (1, 3000), (2, 70)])
def test_strips_take_50_mb_at_most(heads, d, adaptive):
    group, height, width = decorrelate._strips(torch.empty(heads, d, 1), adaptive)
    assert 1 <= group <= heads and max(height, width) <= d
    assert (8 if adaptive else 4) * group * height * width <= 50e6
    if d == 8192:
        assert (height, width) == (2048, 2048)


class Allocations(TorchDispatchMode):
    """Bytes of what `torch.empty` gave."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket == torch.ops.aten.empty:
            self.sizes.append(result.nbytes)
        return result


class NoKernel:
    def __getitem__(self, grid):
        return lambda *args, **settings: None


def test_memory_at_the_largest_case(monkeypatch):
    """d = 8192: one strip and no matrix. The gradients here are small, float32 and so the place of their sums."""
    monkeypatch.setattr(decorrelate, "_decorrelate_elements", NoKernel())
    monkeypatch.setattr(decorrelate, "summarise", lambda partials: partials.sum(1))
    x = torch.zeros(1, 8192, 2)
    for needs in (5 * (True,), 5 * (False,)):
        with Allocations() as allocated:
            decorrelate.decorrelate(x, x, x, x, torch.zeros(()), 0.05, 2.0, 5e-3, 1e-4, needs)
        assert 8 * 2048**2 < sum(allocated.sizes) < 50e6


def test_transposed():
    tensors = [t.float().to(DEVICE) for t in inputs(1, 40, 16)]
    expected = evaluate(backend.decorrelate, tensors, SETTINGS)
    turned = [t.mT.contiguous().mT for t in tensors[:4]]
    found = evaluate(backend.decorrelate, [*turned, tensors[4]], SETTINGS)
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6)


@pytest.fixture
def products(monkeypatch):
    """How many products were formed."""
    made = []
    multiply = decorrelate._multiply

    def watched(left, right, result, begun=False):
        if result is not None:
            made.append(result.shape)
        multiply(left, right, result, begun)

    monkeypatch.setattr(decorrelate, "_multiply", watched)
    return made


def leaves(*needed):
    tensors = [t.float().to(DEVICE) for t in inputs(2, 24, 16)]
    return [t.requires_grad_(number in needed) for number, t in enumerate(tensors)]


@pytest.mark.parametrize(
    ("needed", "count"), [((), 2), ((1,), 3), ((2, 3), 4), ((1, 4), 3), ((4,), 2), ((0, 1, 2, 3, 4), 6)]
)
def test_only_needed_gradients(needed, count, products):
    tensors = leaves(*needed)
    loss = backend.decorrelate(*tensors, **SETTINGS)[0].sum()
    assert len(products) == count
    if needed:
        expected = evaluate(backend.decorrelate, tensors, SETTINGS, torch.ones(2))
        loss.backward()
        for number, tensor in enumerate(tensors):
            assert (tensor.grad is not None) == (number in needed)
            if tensor.grad is not None:
                assert torch.equal(tensor.grad, expected[f"gradient_{number}"])


def test_no_gradients_without_grad_mode(products):
    with torch.no_grad():
        loss = backend.decorrelate(*leaves(0, 1, 2, 3, 4), **SETTINGS)[0]
    assert len(products) == 2 and not loss.requires_grad
    constant = backend.decorrelate(*leaves(0, 1)[:2], None, None, None, **CONSTANT)[0]
    assert len(products) == 5 and constant.requires_grad


def test_backward_passes_over_one_graph():
    tensors = leaves(0, 1, 2, 3, 4)
    losses = backend.decorrelate(*tensors, **SETTINGS)[0]
    for gradient in ([1.0, 1.0], [0.0, -3.0], [1.0, 1.0]):
        weights = torch.tensor(gradient, device=DEVICE)
        found = torch.autograd.grad(losses, tensors, weights, retain_graph=True)
        expected = evaluate(reference.decorrelate, [t.double() for t in tensors], SETTINGS, weights)
        for number, of_tensor in enumerate(found):
            torch.testing.assert_close(of_tensor.double(), expected[f"gradient_{number}"], rtol=1e-4, atol=1e-6)
    (of_first,) = torch.autograd.grad(losses[0], tensors[0])
    assert of_first[0].norm() > 0 and of_first[1].norm() == 0


def float16_gradients(tensors, settings, gradient):
    """Gradients by the kernels, and in float64, of one loss times `gradient`."""
    tensors = [None if t is None else t.half().to(DEVICE) for t in tensors]
    exact = [None if t is None else t.double() for t in tensors]
    both = []
    for operator, given in ((backend.decorrelate, tensors), (reference.decorrelate, exact)):
        found = evaluate(operator, given, settings, torch.tensor([gradient], device=DEVICE))
        both.append([value for key, value in found.items() if key.startswith("gradient")])
    return both


def test_small_slopes_of_float16_under_a_loss_scale():
    """Of a loss near its minimum: float16 has few of their bits unless they are scaled first."""
    x, *_ = inputs(1, 24, 2048)
    scale = 65536.0
    found, expected = float16_gradients([x, x, None, None, None], CONSTANT, scale)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float16 and relative_error(a, b) < 2e-3
        assert relative_error((b / scale).half() * scale, b) > 0.02


def test_large_slopes_of_float16():
    """Of τ near 1e-3: unscaled gradients are beyond float16."""
    gradient, (x, y, p, q, _) = 0.1, inputs(1, 24, 64)
    found, expected = float16_gradients([x, y, 4 * p, 4 * p + 0.1 * q, None], SETTINGS | {"tau_min": 1e-3}, gradient)
    assert max(b.abs().max() for b in expected) > 65504 * gradient
    for a, b in zip(found, expected, strict=True):
        assert a.isfinite().all() and relative_error(a, b) < 2e-3


def test_is_a_well_formed_operator():
    tensors = [t.float().to(DEVICE).requires_grad_() for t in inputs(1, 24, 16)]
    for given in (tensors, [tensors[0].detach(), tensors[1], None, None, None]):
        torch.library.opcheck(backend._decorrelate, (*given, 0.05, 2.0, 5e-3, 1e-4, needed(*given)))


def test_compiles_whole():
    tensors = [t.float().to(DEVICE) for t in inputs(1, 24, 16)]

    def operator(*operands, **settings):
        losses, on, off = backend.decorrelate(*operands, **settings)
        return losses * 2, on, off

    compiled = torch.compile(operator, fullgraph=True, backend="aot_eager")
    found, expected = (evaluate(f, tensors, SETTINGS) for f in (compiled, operator))
    for key, value in found.items():
        assert torch.equal(value, expected[key]), key

"""An operator made of a pair of functions and a record of its arguments."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from amcl_fast.ops.registration import differentiable, scaling


class Product(NamedTuple):
    x: Tensor
    count: int
    y: Tensor | None
    places: Tensor | None
    factor: float


calls = []


def product_forward(a: Product) -> tuple[Tensor, Tensor, Tensor | None]:
    """factor·x²·y, a number of whatever, and 2·factor·x where there is a y."""
    rows = a.factor * a.x * a.x
    if a.y is None:
        return rows, rows.new_tensor(a.count), None
    return rows * a.y, rows.new_tensor(a.count), 2 * a.factor * a.x


def product_fake(a: Product) -> list[Tensor | None]:
    rows = a.x.new_empty(a.x.shape)
    return [rows, a.x.new_empty(()), None if a.y is None else torch.empty_like(rows)]


def product_backward(a: Product, needs: list[bool], gradient: Tensor, slope: Tensor | None) -> list[Tensor | None]:
    calls.append((needs, slope is None))
    slope = 2 * a.factor * a.x if slope is None else slope * a.y
    by_y = gradient * a.factor * a.x * a.x if needs[1] else None
    return [gradient * slope, by_y, None]


product = differentiable("tested_product", Product, product_forward, product_fake, product_backward, saves=(2,))


class Heads(NamedTuple):
    x: Tensor
    offset: Tensor | None
    needs: list[bool]


def heads_forward(a: Heads) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Σ x² − offset of every head."""
    offset = 0 if a.offset is None else a.offset
    by_offset = -a.x.new_ones(len(a.x)) if a.needs[1] else None
    return a.x.square().sum((1, 2)) - offset, 2 * a.x if a.needs[0] else None, by_offset


def heads_fake(a: Heads) -> list[Tensor | None]:
    heads = a.x.new_empty(len(a.x))
    return [heads, torch.empty_like(a.x) if a.needs[0] else None, torch.empty_like(heads) if a.needs[1] else None]


heads = scaling("tested_heads", Heads, heads_forward, heads_fake)


def x_and_y(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 4, generator=generator, dtype=dtype, requires_grad=True) for _ in range(2)]


def test_schemas_follow_from_the_record():
    forward, backward = torch.ops.amcl_fast.tested_product.default, torch.ops.amcl_fast.tested_product_backward.default
    record = "Tensor x, SymInt count, Tensor? y, Tensor? places, float factor"
    assert str(forward._schema) == f"amcl_fast::tested_product({record}) -> (Tensor, Tensor, Tensor)"
    more = "Tensor? gradient_0, Tensor? saved_2, bool[] needs_gradient"
    assert str(backward._schema) == f"amcl_fast::tested_product_backward({record}, {more}) -> (Tensor, Tensor, Tensor)"


@pytest.mark.parametrize("call", [product, product._opoverload], ids=["eager", "dispatched"])
@pytest.mark.parametrize("with_y", [True, False])
def test_gradients(call, with_y):
    x, y = x_and_y()
    given = y if with_y else None
    expected = torch.autograd.grad((3 * x * x * (y if with_y else 1)).sum(), [x, *([y] if with_y else [])])
    calls.clear()
    rows, count, slope = call(x, 5, given, torch.zeros(2, dtype=torch.int64), 3.0)
    assert count == 5 and slope.shape == ((2, 3, 4) if with_y else (0,))
    found = torch.autograd.grad(rows.sum(), [x, *([y] if with_y else [])])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    # An absent result comes back as None, and no whole number needs a gradient.
    assert calls == [([True, with_y, False], not with_y)]


def test_only_what_is_needed():
    x, y = x_and_y()
    calls.clear()
    product(x.detach(), 5, y, None, 3.0)[0].sum().backward()
    assert calls == [([False, True, False], False)]
    assert x.grad is None and y.grad is not None


def test_what_nobody_differentiates_asks_for_nothing():
    x, _ = x_and_y()
    calls.clear()
    _, count, _ = product(x, 5, None, None, 3.0)
    (gradient,) = torch.autograd.grad(count, x, allow_unused=True)
    assert gradient is None and calls == []


@pytest.mark.parametrize("call", [heads, heads._opoverload], ids=["eager", "dispatched"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gradients_of_heads_are_scaled(call, dtype):
    x, _ = x_and_y(dtype)
    offset = torch.tensor(0.5, dtype=dtype, requires_grad=True)
    weights = torch.tensor([2.0, -3.0], dtype=dtype)
    made, *_ = call(x, offset, [True, True])
    by_x, by_offset = torch.autograd.grad((made * weights).sum(), (x, offset))
    torch.testing.assert_close(by_x, 2 * x.detach() * weights[:, None, None])
    assert by_offset == 1 and by_offset.dtype == by_x.dtype == dtype


def test_compile_with_symbols():
    def loss(x, y, count):
        return product(x, count, y, None, 3.0)[0].sum() + heads(x, None, [True, False])[0].sum()

    compiled = torch.compile(loss, dynamic=True, fullgraph=True, backend="aot_eager")
    for width in (4, 5, 7):
        x, y = (torch.randn(2, 3, width, requires_grad=True) for _ in range(2))
        found, expected = (torch.autograd.grad(f(x, y, width), (x, y)) for f in (compiled, loss))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_are_well_formed():
    x, y = x_and_y()
    for given in (y, None):
        torch.library.opcheck(product, (x, 5, given, None, 3.0))
        offset = None if given is None else given[0, 0, 0].detach().requires_grad_()
        torch.library.opcheck(heads, (x, offset, [True, offset is not None]))

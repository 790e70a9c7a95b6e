"""Operators called with and without torch's dispatcher are the same."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from amcl_fast.ops.registration import Operator
from amcl_fast.ops.tensors import once

needs = []


def scaled(x: Tensor, y: Tensor | None, factor: float) -> tuple[Tensor, Tensor, Tensor]:
    """x² · factor (+ y), the same saved for the backward pass, and a count."""
    rows = factor * x * x
    return rows if y is None else rows + y, factor * x, torch.tensor(x.numel(), dtype=torch.int32)


def setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])


@once
def gradients(ctx, gradient, *_):
    needs.append(ctx.needs_input_grad)
    (saved,) = ctx.saved_tensors
    return 2 * gradient * saved, gradient if ctx.needs_input_grad[1] else None, None


operator = Operator("tested_scaled", scaled)
operator.register_fake(
    lambda x, y, factor: (torch.empty_like(x), torch.empty_like(x), x.new_empty((), dtype=torch.int32))
)
operator.register_autograd(gradients, setup_context=setup)


def evaluate(call, with_y=True, wanted=True):
    x = torch.linspace(-1, 1, 6).requires_grad_(wanted)
    y = torch.ones(6, requires_grad=True) if with_y else None
    needs.clear()
    rows, saved, count = call(x, y, 3.0)
    leaves = [leaf for leaf in (x, y) if leaf is not None and leaf.requires_grad]
    grads = torch.autograd.grad((rows * torch.arange(6.0)).sum(), leaves) if leaves else ()
    return [rows, saved, count, *grads], [t.requires_grad for t in (rows, saved, count)], list(needs)


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("with_y", [True, False])
@pytest.mark.parametrize("wanted", [True, False])
def test_the_same_with_and_without_the_dispatcher(with_y, wanted):
    values, graph, needed = evaluate(operator, with_y, wanted)
    expected, expected_graph, expected_needed = evaluate(operator._opoverload, with_y, wanted)
    assert len(values) == len(expected)
    for value, other in zip(values, expected, strict=True):
        assert torch.equal(value, other)
    assert graph == expected_graph
    assert needed == expected_needed


def test_without_gradients_there_is_no_graph():
    x = torch.ones(3, requires_grad=True)
    with torch.no_grad():
        assert operator(x, None, 1.0)[0].grad_fn is None
    assert operator(x.detach(), None, 1.0)[0].grad_fn is None
    with torch.inference_mode():
        assert operator(x, None, 1.0)[0].is_inference()


def test_it_does_not_pass_the_dispatcher(monkeypatch):
    monkeypatch.setattr(operator, "_opoverload", None)
    evaluate(operator)


def test_modes_see_the_operator():
    with Seen() as seen:
        evaluate(operator)
    assert "amcl_fast.tested_scaled.default" in seen.names


def test_the_profiler_sees_it():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        operator(torch.ones(3), None, 1.0)
    assert "amcl_fast::tested_scaled" in {event.key for event in profile.key_averages()}


def test_fake_tensors_stay_fake():
    with FakeTensorMode() as mode:
        x = torch.ones(3)
    assert isinstance(operator(x, None, 1.0)[0], FakeTensor)
    with mode:
        assert isinstance(operator(x, None, 1.0)[0], FakeTensor)


def test_compiled_code_holds_it():
    graphs = []

    def backend(graph, _):
        graphs.append(graph.code)
        return graph

    x = torch.ones(3)
    found = torch.compile(lambda x: operator(x, None, 2.0)[0] + 1, backend=backend, fullgraph=True)(x)
    assert torch.equal(found, operator(x, None, 2.0)[0] + 1)
    assert "amcl_fast.tested_scaled" in graphs[0]


class Functions(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Subclass(Tensor):
    pass


def test_whatever_sees_operators_gets_the_operator(monkeypatch):
    def call(x):
        return operator(x, None, 1.0)[0]

    x = torch.ones(2, 3)
    expected = call(x)
    monkeypatch.setattr(operator, "_function", None)
    monkeypatch.setattr(operator, "_differentiable", None)
    with pytest.raises(TypeError):
        call(x)
    assert torch.equal(torch.func.vmap(call)(x), expected)
    assert torch.equal(call(x.as_subclass(Subclass)), expected)
    with Functions():
        assert torch.equal(call(x), expected)
    with torch.autograd.forward_ad.dual_level():
        assert torch.equal(call(x), expected)
    traced = torch.jit.trace(call, x, check_trace=False)
    assert "tested_scaled" in str(traced.graph)


def test_a_second_derivative_is_refused():
    x = torch.ones(3, requires_grad=True)
    (first,) = torch.autograd.grad(operator(x, None, 1.0)[0].sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        torch.autograd.grad(first.sum(), x)


def test_a_graph_may_be_walked_twice():
    x = torch.ones(3, requires_grad=True)
    rows = operator(x, None, 1.0)[0].sum()
    first, second = (torch.autograd.grad(rows, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_is_well_formed():
    torch.library.opcheck(operator, (torch.ones(3, requires_grad=True), None, 2.0))

"""Operators of torch.library, each made of two functions, forward and backward, and one record of its arguments.

Their names, as the dispatcher, the profiler and compiled graphs have them, are `amcl_fast::NAME` and
`amcl_fast::NAME_backward`. Where nothing but autograd would see them they are called without the dispatcher.
"""

import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import _is_torch_function_mode_enabled

from .tensors import contiguous, masked, once, present, scaled, stand_ins

_PLAIN = (Tensor, torch.nn.Parameter)

A = TypeVar("A", bound=tuple[Any, ...])
Tensors = Sequence[Tensor | None]


class Operator(torch.library.CustomOpDef):
    """`torch.library.custom_op` of a function that mutates nothing and whose results are new tensors.

    Through the dispatcher and the layers of Python that torch registers for an operator a call costs several times
    what it does here, where torch's autograd calls the function itself. Compiled, traced or profiled code, modes,
    transforms and subclasses of Tensor get the operator: whatever sees operators sees this one.

    Args:
        name: after `amcl_fast::`.
        function: takes and returns what `torch.library.infer_schema` knows, by position.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        super().__init__("amcl_fast", name, torch.library.infer_schema(function, mutates_args=()), function)
        self.register_kernel(None)(function)
        self._function = self._differentiable = function

    def register_autograd(
        self, backward: Callable[..., Any], /, *, setup_context: Callable[..., Any] | None = None
    ) -> None:
        """As `torch.library.register_autograd`."""
        super().register_autograd(backward, setup_context=setup_context)
        function = self._function

        class Eager(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *inputs: Any) -> Any:
                output = function(*inputs)
                if setup_context is not None:
                    setup_context(ctx, inputs, output)
                return output

        Eager.backward = staticmethod(backward)  # type: ignore[assignment]
        Eager.__name__ = Eager.__qualname__ = self._name
        self._differentiable = Eager.apply

    def __call__(self, *inputs: Any) -> Any:
        if torch.compiler.is_compiling() or is_seen(inputs):
            return self._opoverload(*inputs)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs):
            return self._differentiable(*inputs)
        return self._function(*inputs)


def differentiable(
    name: str,
    arguments: type[A],
    forward: Callable[[A], Tensors],
    fake: Callable[[A], Tensors],
    backward: Callable[..., Tensors],
    *,
    saves: Sequence[int],
    gradients: int = 1,
    layout: Callable[[Tensor], Tensor] = contiguous,
    around: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
) -> Operator:
    """The operator `name`, called with the fields of `arguments` by position, and the one of its backward pass.

    Functions may leave a tensor out, with None: the operator returns an empty one in its place, of one dimension, as
    torch.library knows no result that may be absent. `masked` and `present` turn it to None again.

    Args:
        name: after `amcl_fast::`.
        arguments: a NamedTuple of what `torch.library.infer_schema` knows, a tensor first. Its annotations are the
            schema.
        forward: of `arguments`; its annotation, a tuple of tensors, tells how many results there are. The first ones
            have gradients.
        fake: of `arguments`; what `forward` returns, as empty tensors.
        backward: of `arguments`, `needs`, one bool for each of its tensors, the gradients of the first results (None:
            nobody asks for it; not all are None), and the saved results (None: was left out). Gradients of all tensors
            of `arguments`, in order; those that are not needed are left out by themselves.
        saves: places of the results that `backward` reads. All tensors of `arguments` are saved as well.
        gradients: number of results that have gradients.
        layout: an empty tensor with the shape, dtype and strides that `backward` gives the gradient of a tensor.
        around: a decorator of what torch calls, forwards and backwards.
    """
    operator, tensors = _forward(name, arguments, forward, fake, around)
    fields = typing.get_type_hints(arguments)

    def derivative(*operands: Any) -> Any:
        needs = operands[-1]
        made = backward(arguments(*operands[: len(fields)]), needs, *operands[len(fields) : -1])
        return _returned(stand_ins(operands[0], masked(made, needs)))

    def fake_derivative(*operands: Any) -> Any:
        given = [operands[i] for i in tensors]
        made = [None if t is None or not need else layout(t) for t, need in zip(given, operands[-1], strict=True)]
        return _returned(stand_ins(operands[0], made))

    more = {f"gradient_{i}": Tensor | None for i in range(gradients)} | {f"saved_{i}": Tensor | None for i in saves}
    signed = _signed(around(derivative), {**fields, **more, "needs_gradient": list[bool]}, len(tensors))
    of_gradients = Operator(f"{name}_backward", signed)
    of_gradients.register_fake(fake_derivative)
    constants = [i for i in range(len(fields)) if i not in tensors]
    # Where each argument of the operator stands among its tensors and constants.
    places = [[*tensors, *constants].index(i) for i in range(len(fields))]

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        made = _all(output)
        ctx.save_for_backward(*(inputs[i] for i in tensors), *(made[i] for i in saves))
        ctx.constants = tuple(inputs[i] for i in constants)

    @once
    def of_inputs(ctx: Any, *of_results: Tensor | None) -> tuple[Tensor | None, ...]:
        given = [present(gradient) for gradient in of_results[:gradients]]
        if all(gradient is None for gradient in given):
            return len(fields) * (None,)
        # Read once: checkpointing forms again what is asked for, and for one backward pass only once.
        saved = ctx.saved_tensors
        pool = (*saved[: len(tensors)], *ctx.constants)
        needs = [ctx.needs_input_grad[i] for i in tensors]
        inputs = (pool[place] for place in places)
        made = of_gradients(*inputs, *given, *map(present, saved[len(tensors) :]), needs)
        return _among(len(fields), tensors, masked(_all(made), needs))

    operator.register_autograd(of_inputs, setup_context=setup)
    return operator


def scaling(
    name: str,
    arguments: type[A],
    forward: Callable[[A], Tensors],
    fake: Callable[[A], Tensors],
    *,
    around: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
) -> Operator:
    """As `differentiable`, of an operator that makes its gradients forwards.

    Its first result is one value a head, its last ones are the gradients of these by the tensors of `arguments`, those
    that somebody will ask for; a backward pass only scales them (`tensors.scaled`), by torch's own operators.
    """
    operator, tensors = _forward(name, arguments, forward, fake, around)
    fields = typing.get_type_hints(arguments)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[-len(tensors) :])
        ctx.dtypes = [None if inputs[i] is None else inputs[i].dtype for i in tensors]

    @once
    def of_inputs(ctx: Any, gradient: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return len(fields) * (None,)
        made = masked(ctx.saved_tensors, [ctx.needs_input_grad[i] for i in tensors])
        return _among(len(fields), tensors, scaled(made, gradient, ctx.dtypes))

    operator.register_autograd(of_inputs, setup_context=setup)
    return operator


def underived(name: str, arguments: type[A], forward: Callable[[A], Tensors], fake: Callable[[A], Tensors]) -> Operator:
    """As `differentiable`, of an operator whose results have no derivatives."""
    return _forward(name, arguments, forward, fake, lambda function: function)[0]


def _forward(
    name: str,
    arguments: type[A],
    forward: Callable[[A], Tensors],
    fake: Callable[[A], Tensors],
    around: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> tuple[Operator, list[int]]:
    """The operator without its derivatives, and the places of tensors among its arguments."""
    fields = typing.get_type_hints(arguments)
    tensors = [i for i, kind in enumerate(fields.values()) if kind in (Tensor, Tensor | None)]
    results = len(typing.get_args(typing.get_type_hints(forward)["return"]))

    def filled(function: Callable[[A], Tensors]) -> Callable[..., Any]:
        def call(*operands: Any) -> Any:
            return _returned(stand_ins(operands[0], function(arguments(*operands))))

        return call

    operator = Operator(name, _signed(around(filled(forward)), fields, results))
    operator.register_fake(filled(fake))
    return operator, tensors


def _signed(function: Callable[..., Any], parameters: dict[str, Any], results: int) -> Callable[..., Any]:
    """`function` with the signature that `torch.library.infer_schema` reads."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind, annotation=annotation) for name, annotation in parameters.items()],
        return_annotation=tuple[(Tensor,) * results] if results > 1 else Tensor,  # type: ignore[misc]
    )
    return function


def _returned(results: Sequence[Tensor]) -> Any:
    """What an operator returns: several results in a tuple, one as it is."""
    return tuple(results) if len(results) > 1 else results[0]


def _all(returned: Any) -> tuple[Tensor, ...]:
    """The results of what an operator returned."""
    return returned if isinstance(returned, tuple) else (returned,)


def _among(count: int, places: Sequence[int], gradients: Tensors) -> tuple[Tensor | None, ...]:
    """`gradients` at their `places` of `count`, None elsewhere."""
    result: list[Tensor | None] = [None] * count
    for place, gradient in zip(places, gradients, strict=True):
        result[place] = gradient
    return tuple(result)


def is_seen(inputs: tuple[Any, ...]) -> bool:
    """Whether somebody looks at operators: a mode, a transform, a tracer, a profiler, or the class of a tensor."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or _is_torch_function_mode_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch.autograd._profiler_enabled()
        or torch.jit.is_tracing()
        or any(isinstance(given, Tensor) and type(given) not in _PLAIN for given in inputs)
    )

"""Operators of torch.library that are called without torch's dispatcher where nothing but autograd would see them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import _is_torch_function_mode_enabled

_PLAIN = (Tensor, torch.nn.Parameter)


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
        if torch.compiler.is_compiling() or _is_seen(inputs):
            return self._opoverload(*inputs)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs):
            return self._differentiable(*inputs)
        return self._function(*inputs)


def _is_seen(inputs: tuple[Any, ...]) -> bool:
    """Whether somebody looks at operators: a mode, a transform, a tracer, a profiler, or the class of a tensor."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or _is_torch_function_mode_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch.autograd._profiler_enabled()
        or torch.jit.is_tracing()
        or any(isinstance(value, Tensor) and type(value) not in _PLAIN for value in inputs)
    )

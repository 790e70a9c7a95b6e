"""Launches at half of Triton's host time, and one compiled kernel for all sizes of a batch.

`JITFunction.run` asks of every argument, and of every field of a tuple, what it would compile the kernel for: 11 µs
with two tables, 18 with four, of which libcuda's own launch is 2. Here the values themselves are the key: dtypes, what
pointers leave divided by 16, numbers as they are. It is finer than Triton's, which asks of a number whether it is 1,
divisible by 16 and an int32, so but for the sizes that `launched` names two calls for which Triton would compile two
kernels never share one. A key that was not seen before goes to `JITFunction.run`, and so does a launch that somebody
watches: a profiler with launch hooks sees kernels that Triton has specialised for the sizes as well.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

# Of what `JITFunction.run` does, all that matters to a launch is repeated here; other releases do it themselves.
_KNOWN = triton.__version__.startswith("3.6.")
_RUN = JITFunction.run
# Keys of one kernel, each a size or a device; a program that has more of them begins anew.
_MOST = 1024
# Stand for sizes while a kernel is compiled: of the same width in bits, and neither 1 nor divisible by 16.
_SIZE, _LONG_SIZE = 3, 2**31 + 3


class Rows(NamedTuple):
    """A (C, rows, width) tensor as the kernels take it: any strides, pointers and sizes in one argument."""

    base: Tensor
    head: int
    row: int
    column: int
    rows: int
    width: int


def blocks(count: int, size: int) -> int:
    """⌈count / size⌉: triton.cdiv, which is made for kernels as well, takes 1.5 µs."""
    return -(-count // size)


def power_of_two(n: int) -> int:
    """The smallest that is at least `n`, as triton.next_power_of_2, for n ≥ 1."""
    return 1 << (n - 1).bit_length()


def launched(*sizes: str) -> Callable[[Any], Any]:
    """Decorates a kernel that is launched, above @triton.jit; kernel[grid](…) stays the call.

    Args:
        sizes: parameters, or fields of tuples, that count rows. Nothing is compiled anew because one of them is 1 or
            stops being divisible by 16: for what only bounds a mask or separates planes that gains nothing. The
            number of rows of a transposed table is no such size: loads along it are as wide as it allows.
    """

    def decorate(kernel: Any) -> Any:
        # The interpreter's kernels are left as they are.
        if not _KNOWN or not isinstance(kernel, JITFunction):
            return kernel
        kernel.sizes = frozenset(sizes)
        return Launched(kernel)

    return decorate


class Launched:
    """A kernel of Triton's whose repeated launches do not go through Triton; all else of it is as it was."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.__doc__ = kernel.__doc__
        self._launches: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def __getattr__(self, name: str) -> Any:
        if name == "kernel":  # of a copy that is not yet filled
            raise AttributeError(name)
        return getattr(self.kernel, name)

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        return lambda *arguments, **constants: self._launch(grid, arguments, constants)

    def _launch(self, grid: Any, arguments: tuple[Any, ...], constants: dict[str, Any]) -> Any:
        if type(grid) is not tuple or self._watched():
            return self.kernel.run(*arguments, grid=grid, warmup=False, **constants)
        driver = triton.runtime.driver.active
        device = driver.get_current_device()
        key = key_of(device, arguments, constants)
        try:
            found = self._launches.get(key)
        except TypeError:  # a value without a hash, a list say
            return self.kernel.run(*arguments, grid=grid, warmup=False, **constants)
        if found is None:
            found = self._compiled(grid, arguments, constants)
            if found is None:
                return self.kernel.run(*arguments, grid=grid, warmup=False, **constants)
            if len(self._launches) >= _MOST:
                self._launches.clear()
            self._launches[key] = found
        compiled, launch, head, rest, seen = found
        for space, name, value in seen:
            if space.get(name) is not value:  # Triton says what has changed
                return self.kernel.run(*arguments, grid=grid, warmup=False, **constants)
        x, y, z = (*grid, 1, 1)[:3]
        launch(x, y, z, driver.get_current_stream(device), *head, *arguments, *rest)
        return compiled

    def _watched(self) -> bool:
        """Whether somebody wants to see launches (a profiler, a test) or has them compiled in another way."""
        runtime = knobs.runtime
        return (
            JITFunction.run is not _RUN
            or runtime.debug
            or knobs.compilation.instrumentation_mode
            or _calls(runtime.launch_enter_hook)
            or _calls(runtime.launch_exit_hook)
            or self.kernel.pre_run_hooks
        )

    def _compiled(self, grid: Any, arguments: tuple[Any, ...], constants: dict[str, Any]) -> tuple[Any, ...] | None:
        """The kernel; its C launcher, and what that takes before and after the arguments; what it saw of its module.

        None if it is not ready, or not launched in the way that is known here.
        """
        names = self.kernel.arg_names
        compiled = self.kernel.run(*general(self.kernel, arguments), grid=grid, warmup=True, **constants)
        if not isinstance(compiled, CompiledKernel):
            return None
        run = compiled.run
        if not isinstance(run, _launcher()) or run.global_scratch_size or run.profile_scratch_size:
            return None
        head = (
            compiled.function, run.launch_cooperative_grid, run.launch_pdl, None, None,
            compiled.packed_metadata, None, None, None,
        )  # fmt: skip
        defaults = {param.name: param.default for param in self.kernel.params}
        rest = tuple(constants.get(name, defaults[name]) for name in names[len(arguments) :])
        seen = [(space, name, space.get(name)) for (name, _), (_, space) in self.kernel.used_global_vals.items()]
        return compiled, run.launch, head, rest, seen


def general(kernel: Any, arguments: tuple[Any, ...]) -> list[Any]:
    """Arguments for which Triton compiles the kernel that serves `arguments` and all other sizes."""
    sizes: frozenset[str] = getattr(kernel, "sizes", frozenset())

    def of_any_size(name: str, value: Any) -> Any:
        if name in sizes and type(value) is int:
            return _SIZE if -(2**31) <= value < 2**31 else _LONG_SIZE
        if not hasattr(value, "_fields") or (type(value) is Rows and value.row == 1):
            return value  # read along its rows, whose number is then a width
        return type(value)(*map(of_any_size, value._fields, value))  # of a NamedTuple

    return [of_any_size(name, value) for name, value in zip(kernel.arg_names, arguments, strict=False)]


def key_of(device: int, arguments: tuple[Any, ...], constants: dict[str, Any]) -> tuple[Any, ...]:
    """What a launch may be compiled for; equal only where Triton takes the same kernel."""
    return (device, *_kinds(arguments), *constants, *constants.values(), *map(type, constants.values()))


def _kinds(values: tuple[Any, ...]) -> list[Any]:
    """What Triton may ask of each value."""
    kinds: list[Any] = []
    for value in values:
        kind = type(value)
        if kind is Rows:  # its numbers are ints, whose values say all
            base = value[0]
            kinds.append((kind, base.dtype, base.data_ptr() & 15, value[1:]))
        elif kind is Tensor or kind is torch.nn.Parameter:
            kinds.append((value.dtype, value.data_ptr() & 15))
        elif kind is float:
            kinds.append(kind)
        elif isinstance(value, tuple):
            kinds.append((kind, *_kinds(value)))
        elif isinstance(value, Tensor):
            kinds.append((kind, value.dtype, value.data_ptr() & 15))
        else:
            kinds.append((kind, value))
    return kinds


def _calls(hook: Any) -> bool:
    """Whether a launch hook does something: Triton's are chains, empty at first."""
    return hook is not None and bool(getattr(hook, "calls", True))


def _launcher() -> Any:
    from triton.backends.nvidia.driver import CudaLauncher

    return CudaLauncher

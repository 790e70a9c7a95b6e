"""Triton's interpreter at a sixth of its cost; what kernels compute and how they may fail stays as it was.

Its time goes into Python around tiny tiles, not into numpy: types are made, compared and converted anew for every
operation of every program. Here what follows from types is found once, and kept on them.
"""

import functools
import inspect

import numpy as np
import triton.language as tl
from triton.language import core
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

_INTEGERS = frozenset(["int1", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))])
_NUMBERS = _INTEGERS | {"fp32", "fp64"}
_NEVER_WRAPPED = frozenset([int, float, bool, str, type(None), tl.tensor, tl.dtype, tl.block_type, tl.pointer_type])


def quicken():
    """Replaces what costs most of an interpreted kernel."""
    _quicken_tuples()
    _quicken_types()
    _quicken_tensors()
    interpreter.interpreter_builder = _Builder()
    interpreter.interpreter_semantic = _Semantic(interpreter.interpreter_builder)
    _quicken_reductions()
    _quicken_calls()


def _quicken_tuples():
    """Finds the type of a tuple, a shape mostly, only where somebody asks for it; what is plain is not unwrapped."""
    make, element, unwrap = tl.tuple.__init__, tl.tuple.__getattr__, core._unwrap_if_constexpr

    def made(self, values, type=None):
        if type is None:
            self.values = [*values]
        else:
            make(self, values, type)

    def attribute(self, name):
        if name != "type":
            return element(self, name)
        self.type = core._type_for_tuple_values(self.values)
        return self.type

    tl.tuple.__init__, tl.tuple.__getattr__ = made, attribute
    core._unwrap_if_constexpr = lambda value: value if type(value) in _NEVER_WRAPPED else unwrap(value)


def _quicken_types():
    """Makes a block's type once for each type of its elements and each shape, and finds numpy's of a type once."""
    fill, np_dtype = tl.block_type.__init__, interpreter._get_np_dtype

    def new(cls, element_ty=None, shape=None):
        if shape is None:  # of a copy
            return object.__new__(cls)
        key = tuple(shape)
        try:
            return element_ty._blocks[key]
        except AttributeError:
            element_ty._blocks = {}
        except KeyError:
            pass
        made = element_ty._blocks[key] = object.__new__(cls)
        fill(made, element_ty, list(key))
        made._extent = tuple(made.shape)
        return made

    def found(dtype):
        try:
            return dtype._numpy
        except AttributeError:
            dtype._numpy = np_dtype(dtype)
            return dtype._numpy

    tl.block_type.__new__, tl.block_type.__init__ = new, lambda self, element_ty, shape: None
    tl.block_type.with_element_ty = lambda self, element_ty: new(tl.block_type, element_ty, self._extent)
    tl.dtype._extent = ()
    interpreter._get_np_dtype = found


def _quicken_tensors():
    """Makes what a tensor tells of its type once for each type, and finds the largest item of a handle so."""
    make, look = tl.tensor.__init__, interpreter.TensorHandle.__post_init__

    def made(self, handle, type):
        try:
            self.shape, self.numel, self.dtype = type._told
        except AttributeError:
            make(self, handle, type)
            type._told = self.shape, self.numel, self.dtype
        self.handle, self.type = handle, type

    def held(self, data, dtype, attr=None):
        self.data, self.dtype = data, dtype
        self.attr = {} if attr is None else attr
        try:
            fits = data.itemsize <= dtype._itemsize
        except AttributeError:
            dtype._itemsize = interpreter._get_np_dtype(dtype).itemsize
            fits = False
        if not fits:
            look(self)

    tl.tensor.__init__ = made
    interpreter.TensorHandle.__init__ = held


@functools.cache
def _common(left, right):
    """The shape that two blocks of one rank broadcast to, None if there is none."""
    if len(left) != len(right) or any(a != b and 1 not in (a, b) for a, b in zip(left, right, strict=True)):
        return None
    return tuple(b if a == 1 else a for a, b in zip(left, right, strict=True))


class _Builder(interpreter.InterpreterBuilder):
    """Of what the interpreter does with arrays, that which numpy does in less."""

    def create_splat(self, ret_ty, arg):
        if isinstance(arg.dtype, tl.block_type):
            return super().create_splat(ret_ty, arg)
        filled = np.empty(ret_ty._extent, interpreter._get_np_dtype(arg.dtype))
        filled[...] = arg.data
        return interpreter.TensorHandle(filled, arg.dtype)

    def create_expand_dims(self, arg, axis):
        shape = arg.data.shape
        return interpreter.TensorHandle(arg.data.reshape((*shape[:axis], 1, *shape[axis:])), arg.dtype.scalar)


class _Semantic(TritonSemantic):
    """The rules of Triton's operators, with a short way for numbers and tensors that need few of them."""

    def __init__(self, builder):
        super().__init__(builder)
        self._promoted = {}

    def to_tensor(self, x, check_type=True):
        return x if type(x) is tl.tensor else super().to_tensor(x, check_type)

    def scalar_constant(self, value, dtype):
        if type(dtype) is not tl.dtype or dtype.name not in _NUMBERS:
            return super().scalar_constant(value, dtype)
        data = np.array([0 if value == 0 else value], interpreter._get_np_dtype(dtype))
        return tl.tensor(interpreter.TensorHandle(data, dtype), dtype)

    def computation_type_impl(self, a_ty, a_is_scalar, b_ty, b_is_scalar, div_or_mod):
        key = a_ty.name, a_is_scalar, b_ty.name, b_is_scalar, div_or_mod
        if key not in self._promoted:
            self._promoted[key] = super().computation_type_impl(a_ty, a_is_scalar, b_ty, b_is_scalar, div_or_mod)
        return self._promoted[key]

    def binary_op_type_checking_impl(
        self, lhs, rhs, allow_lhs_ptr=False, allow_rhs_ptr=False, arithmetic_check=True, div_or_mod=False
    ):
        if type(lhs) is tl.tensor and type(rhs) is tl.tensor:
            left, right = lhs.dtype, rhs.dtype
            if left.name in _NUMBERS and right.name in _NUMBERS:
                if left is not right and arithmetic_check:
                    both = self.computation_type_impl(left, False, right, False, div_or_mod)
                    lhs, rhs = self.cast(lhs, both), self.cast(rhs, both)
                return self.broadcast_impl_value(lhs, rhs)
            if allow_lhs_ptr and type(left) is tl.pointer_type and right.name in _INTEGERS:
                return self.broadcast_impl_value(lhs, rhs)
        return super().binary_op_type_checking_impl(
            lhs, rhs, allow_lhs_ptr, allow_rhs_ptr, arithmetic_check, div_or_mod
        )

    def binary_op_sanitize_overflow_impl(self, lhs, rhs, binary_op):
        # What it computes is asserted in debugging alone.
        if self.builder.options.debug:
            super().binary_op_sanitize_overflow_impl(lhs, rhs, binary_op)

    def broadcast_impl_value(self, lhs, rhs):
        left, right = lhs.type, rhs.type
        if left is right or left._extent == right._extent:
            return lhs, rhs
        if not right._extent:
            return lhs, self._splat(rhs, left._extent)
        if not left._extent:
            return self._splat(lhs, right._extent), rhs
        both = _common(left._extent, right._extent)
        if both is None:
            return super().broadcast_impl_value(lhs, rhs)
        return self._broadcast(lhs, both), self._broadcast(rhs, both)

    def _splat(self, value, shape):
        type_ = tl.block_type(value.dtype, shape)
        return tl.tensor(self.builder.create_splat(type_, value.handle), type_)

    def _broadcast(self, value, shape):
        if value.type._extent == shape:
            return value
        return tl.tensor(self.builder.create_broadcast(value.handle, shape), tl.block_type(value.dtype, shape))

    def cast(self, input, dst_ty, fp_downcast_rounding=None):
        if input.dtype is dst_ty:
            return input
        number = type(dst_ty) is tl.dtype and dst_ty.name in _NUMBERS and input.dtype.name in _NUMBERS
        if not number or dst_ty.name == "int1" or fp_downcast_rounding is not None:
            return super().cast(input, dst_ty, fp_downcast_rounding)
        data = input.handle.data.astype(interpreter._get_np_dtype(dst_ty))
        extent = input.type._extent
        return tl.tensor(interpreter.TensorHandle(data, dst_ty), tl.block_type(dst_ty, extent) if extent else dst_ty)


def _quicken_reductions():
    """Leaves `reduce_or` to numpy, as the interpreter leaves sums; one element after the other calls the kernel's |."""
    reduce = interpreter.ReduceOps.generic_reduce

    def reduced(self, input):
        if self.combine_fn is not tl.standard._or_combine or self.axis is None:
            return reduce(self, input)
        data = np.bitwise_or.reduce(input[0].handle.data, axis=self.axis, keepdims=self.keep_dims)
        return [self.to_tensor(data, input[0].dtype)]

    interpreter.ReduceOps.generic_reduce = reduced


def _quicken_calls():
    """Makes triton.language ready for a module's device functions once a launch, not again at every call of one.

    A builtin gets what it needs without a copy of its arguments, and without its look whether they are there.
    """
    ready, builtins = set(), {}
    launch, semantic = interpreter.GridExecutor.__call__, interpreter.interpreter_semantic
    looking = core.program_id.__code__

    def bound(member):
        function = member.__wrapped__ if getattr(member, "__code__", None) is looking else member

        def call(*arguments, **options):
            options["_semantic"] = semantic
            return function(*arguments, **options)

        return call

    def patch(package, builder, scope):
        if package not in builtins:
            found = [(name, member) for name, member in inspect.getmembers(package) if core.is_builtin(member)]
            builtins[package] = [(name, member, bound(member)) for name, member in found]
        for name, member, replacement in builtins[package]:
            if getattr(package, name) is member:
                scope.set_attr(package, name, replacement)

    @functools.wraps(launch)
    def launched(self, *arguments, **options):
        # At its end a launch takes its changes of triton.language back.
        ready.clear()
        return launch(self, *arguments, **options)

    def call(self, *arguments, **options):
        if self.fn.__module__ not in ready:
            interpreter._patch_lang(self.fn)
            ready.add(self.fn.__module__)
        try:
            return self.rewrite()(*arguments, **options)
        except Exception as error:
            raise interpreter.InterpreterError(repr(error)) from error

    interpreter._patch_builtin = patch
    interpreter.GridExecutor.__call__ = launched
    interpreter.InterpretedFunction.__call__ = call

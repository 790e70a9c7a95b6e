"""Triton's interpreter at a third of its cost; what kernels compute and how they may fail stays as it was."""

import functools

import triton.language as tl
from triton.runtime import interpreter


def quicken():
    """Makes triton.language ready for a module's device functions once a launch, not again at every call of one.

    And finds numpy's type of a scalar type once, and that of a tuple, a shape mostly, only where somebody asks for it.
    Together they were two thirds of every interpreted kernel.
    """
    ready = set()
    launch, np_dtype = interpreter.GridExecutor.__call__, interpreter._get_np_dtype
    of_scalar = functools.cache(np_dtype)
    make, element = tl.tuple.__init__, tl.tuple.__getattr__

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

    def found(dtype):
        scalar = getattr(dtype, "scalar", dtype)
        return np_dtype(scalar) if isinstance(scalar, tl.pointer_type) else of_scalar(scalar)

    def made(self, values, type=None):
        if type is None:
            self.values = [*values]
        else:
            make(self, values, type)

    def attribute(self, name):
        if name != "type":
            return element(self, name)
        self.type = tl.core._type_for_tuple_values(self.values)
        return self.type

    tl.tuple.__init__, tl.tuple.__getattr__ = made, attribute
    interpreter.GridExecutor.__call__ = launched
    interpreter.InterpretedFunction.__call__ = call
    interpreter._get_np_dtype = found

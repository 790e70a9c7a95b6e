"""A memcheck for Triton's interpreter: kernels touch the tensors they were given and nothing else.

The interpreter reads and writes wherever a pointer leads. What lies there is finite most of the time, and a masked
product of it zero, so that a wrong address shows in one run of a hundred.
"""

import numpy as np
import torch
from triton.runtime import interpreter

_GAP = 1 << 20
_ALIGNMENT = 256


class Memcheck:
    """Patches the interpreter: every address of a launch must lie in one of its tensor arguments.

    The arguments are copied for the launch, a MiB apart, so that a wrong address does not lead into the next one.

    Args:
        monkeypatch: pytest's; it takes the patches back.

    Attributes:
        accesses: elements read, written or updated so far.
    """

    def __init__(self, monkeypatch):
        builder = interpreter.InterpreterBuilder
        self._starts = self._ends = np.empty(0, np.uint64)
        self.accesses = 0

        def load(this, ptrs, mask, *rest):
            self._look("reads", ptrs, mask)
            return masked_load(this, ptrs, mask, *rest)

        def store(this, ptrs, value, mask, *rest):
            self._look("writes", ptrs, mask)
            return masked_store(this, ptrs, value, mask, *rest)

        def atomic(this, operation, ptrs, value, mask, *rest):
            self._look("updates", ptrs, mask)
            return atomic_rmw(this, operation, ptrs, value, mask, *rest)

        masked_load, masked_store = builder.create_masked_load, builder.create_masked_store
        atomic_rmw = builder.create_atomic_rmw
        monkeypatch.setattr(interpreter.GridExecutor, "_init_args_hst", lambda _, *given: self._copy_in(*given))
        monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: self._copy_out())
        monkeypatch.setattr(builder, "create_masked_load", load)
        monkeypatch.setattr(builder, "create_masked_store", store)
        monkeypatch.setattr(builder, "create_atomic_rmw", atomic)

    def _copy_in(self, args, kwargs):
        """The arguments of a launch with their tensors copied; called as GridExecutor's method of the name."""
        given = [*args, *kwargs.values()]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in _tensors(given)}
        places, end = {}, 0
        for address, storage in storages.items():
            places[address] = end + _GAP
            end += _GAP + -(-storage.nbytes() // _ALIGNMENT) * _ALIGNMENT
        arena = torch.empty(end + _GAP, dtype=torch.uint8)
        self._copies = [
            (torch.empty(0, dtype=torch.uint8).set_(storage), arena[places[address] :][: storage.nbytes()])
            for address, storage in storages.items()
        ]
        for original, copy in self._copies:
            copy.copy_(original)

        def copied(argument):
            if isinstance(argument, tuple):
                return interpreter._tuple_create(argument, map(copied, argument))
            if not isinstance(argument, torch.Tensor):
                return argument
            place = places[argument.untyped_storage().data_ptr()] // argument.element_size()
            place += argument.storage_offset()
            empty = argument.detach().new_empty(0)
            return empty.set_(arena.untyped_storage(), place, argument.size(), argument.stride())

        found = [copied(argument) for argument in given]
        spans = np.array(sorted(map(_span, _tensors(found))), np.uint64).reshape(-1, 2)
        self._starts, self._ends = spans[:, 0], np.maximum.accumulate(spans[:, 1])
        return found[: len(args)], dict(zip(kwargs, found[len(args) :], strict=True))

    def _copy_out(self):
        for original, copy in self._copies:
            original.copy_(copy)

    def _look(self, verb, ptrs, mask):
        addresses = np.atleast_1d(ptrs.data)[np.atleast_1d(mask.data).astype(bool)].astype(np.uint64)
        self.accesses += addresses.size
        size = np.uint64(ptrs.get_element_ty().primitive_bitwidth // 8)
        place = np.searchsorted(self._starts, addresses, side="right") - 1
        outside = (place < 0) | (addresses + size > self._ends[place])
        if outside.any():
            raise AssertionError(f"a kernel {verb} {outside.sum()} of {outside.size} elements outside its tensors")


def _tensors(arguments):
    for argument in arguments:
        if isinstance(argument, tuple):
            yield from _tensors(argument)
        elif isinstance(argument, torch.Tensor):
            yield argument


def _span(tensor):
    """First address of a tensor, and the one behind its last element."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    elements = last + 1 if tensor.numel() else 0
    return tensor.data_ptr(), tensor.data_ptr() + elements * tensor.element_size()

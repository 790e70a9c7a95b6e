"""The operations of a call as a device would see them, down into the bodies of this package's operators."""

from collections import Counter
from contextlib import contextmanager

import torch
from torch._C import _dispatch_has_kernel_for_dispatch_key as has_kernel
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

# What waits for the device, or makes a shape of values, or brings something from the host.
WAITING = {
    "aten._local_scalar_dense", "aten.item", "aten.is_nonzero", "aten.equal", "aten.nonzero", "aten.nonzero_static",
    "aten.masked_select", "aten._unique2", "aten.unique_dim", "aten.unique_consecutive", "aten.bincount",
    "aten.repeat_interleave", "aten.lift_fresh", "aten.pin_memory", "aten._pin_memory",
}  # fmt: skip


class Operations(TorchDispatchMode):
    """Counts operations by name, and by those which a captured graph cannot hold.

    Attributes:
        counts: of all operations that are no composition of others, views among them.
        waiting: names of those that wait for the device, copy between host and device, or index by a mask.
    """

    def __init__(self):
        super().__init__()
        self.counts, self.waiting = Counter(), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = str(func.overloadpacket)
        if func.namespace == "amcl_fast":
            self.counts[name] += 1
            with self:
                return OPDEFS[f"amcl_fast::{name.removeprefix('amcl_fast.')}"]._init_fn(*args, **kwargs)
        if func.namespace == "aten" and has_kernel(func.name(), "CompositeImplicitAutograd"):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        self.counts[name] += 1
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
        masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)] if _indexes(name) else []
        if name in WAITING or masks:
            self.waiting.append(name)
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor) and any(t.device != result.device and t.dim() for t in tensors):
            self.waiting.append(f"{name} between devices")
        return result


def _indexes(name):
    return name in ("aten.index", "aten.index_put", "aten.index_put_", "aten._index_put_impl_")


@contextmanager
def without_launches(monkeypatch):
    """Kernels of Triton's interpreter are counted and do nothing, so that real sizes take no time."""
    from triton.runtime import interpreter

    launches = Counter()
    with monkeypatch.context() as patch:
        patch.setattr(interpreter.GridExecutor, "__call__", lambda this, *_, **__: launches.update([this.fn.__name__]))
        yield launches

"""Triton's own launcher on a machine without a GPU: libcuda is `standin.c`, tensors of the CPU pass for the GPU's.

Kernels are compiled for the target, loaded, given their arguments and launched as on the device, and nothing runs: what
they would write stays as `torch.empty` left it. A process that has called `install` is of no other use.
"""

import collections
import contextlib
import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import torch
import triton
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia

from amcl_fast import capabilities, ops, rows
from amcl_fast.kernels import common

_SOURCE = Path(__file__).with_name("standin.c")
_KEPT = 4096  # LAUNCHES of standin.c


class Launch(ctypes.Structure):
    """A launch as libcuda gets it: `Launch` of standin.c."""

    _fields_ = (
        ("name", ctypes.c_char * 96),
        ("function", ctypes.c_ulonglong),
        ("stream", ctypes.c_ulonglong),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint),
        ("shared", ctypes.c_uint),
        ("registers", ctypes.c_uint),
        ("bytes", ctypes.c_uint),
        ("parameters", ctypes.c_ubyte * 1024),
    )


def compiler() -> str | None:
    """The C compiler, if there is one: Triton needs it too."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")


class StandIn:
    """The stand-in, installed for devices of one compute capability after the other; each is a device of its own.

    Args:
        folder: where libcuda.so.1 is built.

    Attributes:
        kernels: launches by kernel since `clear`, as `module.name`, if `named`.
    """

    def __init__(self, folder: Path) -> None:
        library = folder / "libcuda.so.1"
        include = Path(nvidia.__file__).with_name("include")
        subprocess.run(
            [compiler(), "-O2", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", f"-I{include}", _SOURCE, "-o", library],
            check=True,
        )
        (folder / "libcuda.so").symlink_to(library)
        os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
        self._library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        self._capability = ctypes.c_int.in_dll(self._library, "standin_capability")
        self._count = ctypes.c_longlong.in_dll(self._library, "standin_launches")
        self._last = (Launch * _KEPT).in_dll(self._library, "standin_last")
        self.kernels: collections.Counter[str] = collections.Counter()

    def install(self, arch: int, *, named: bool = True) -> None:
        """Make it the GPU.

        Args:
            arch: compute capability, 90 for sm_90.
            named: count launches by kernel, and refuse grids that Triton would leave out without a word, which costs
                host time.
        """
        self._capability.value = arch
        triton.runtime.driver.set_active(_Driver(arch, self._launcher() if named else nvidia.CudaLauncher))
        common.capability = lambda x: divmod(arch, 10)
        capabilities.triton_status = lambda: capabilities.Status(True, "a stand-in")
        ops._interpreted = lambda: True  # takes CPU tensors
        # The values of a GPU's tensors are not looked at.
        rows.may_look = lambda x: False

    def clear(self) -> None:
        self.kernels.clear()

    @property
    def count(self) -> int:
        """Launches so far."""
        return self._count.value

    def last(self, number: int = 1) -> list[Launch]:
        """The last launches, oldest first."""
        return [self._last[i % _KEPT] for i in range(self.count - number, self.count)]

    def _launcher(self):
        this = self

        class Named(nvidia.CudaLauncher):
            def __init__(self, source, metadata):
                super().__init__(source, metadata)
                name = source.fn.__name__.strip("_")
                launch = self.launch

                def counted(*arguments):
                    before = this.count
                    launch(*arguments)
                    if this.count == before:  # Triton multiplies the sides as int32, and skips what is not positive
                        raise OverflowError(f"{name} was not launched: its grid is {arguments[:3]}")
                    this.kernels[name] += 1

                self.launch = counted

        return Named


class _Driver:
    def __init__(self, arch, launcher):
        self.arch, self.launcher_cls, self.utils = arch, launcher, nvidia.CudaUtils()

    def get_current_device(self):
        return self.arch

    def set_current_device(self, device):
        pass

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", self.arch, 32)


class Unfilled(TorchDispatchMode):
    """torch's operators return tensors of the right shape and compute nothing; those that would launch are counted.

    Attributes:
        operators: calls by name, without views and allocations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.namespace != "aten":
            with self:  # the body of ours, which calls torch's
                return OPDEFS[function._schema.name]._init_fn(*args, **kwargs)
        with self:  # made of others
            if (result := function.decompose(*args, **kwargs)) is not NotImplemented:
                return result
        name = function.overloadpacket.__name__
        returned = [r.alias_info for r in function._schema.returns]
        if name in _ALLOCATIONS or any(alias is not None and not alias.is_write for alias in returned):
            return function(*args, **kwargs)
        self.operators[name] += 1
        if function._schema.is_mutable:
            return kwargs.get("out", args[0])
        meta = tree_map_only(torch.Tensor, lambda t: t.to("meta"), (args, kwargs))
        if any(argument.name == "device" for argument in function._schema.arguments):
            meta[1]["device"] = "meta"
        result = function(*meta[0], **meta[1])
        return tree_map_only(
            torch.Tensor, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cpu"), result
        )


_ALLOCATIONS = {
    "detach", "empty", "empty_like", "empty_strided", "lift_fresh", "new_empty", "new_empty_strided", "_unsafe_view",
}  # fmt: skip


@contextlib.contextmanager
def unfilled():
    """An `Unfilled` for what runs meanwhile."""
    with Unfilled() as mode:
        yield mode

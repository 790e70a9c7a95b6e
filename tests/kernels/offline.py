"""Compile the kernels for a GPU that is not there, exactly as the launchers would, and print what they use.

    python tests/kernels/offline.py 90 [part] [parts]

The launchers run on CPU tensors with a driver that only names the target, so every configuration comes from their
own tables. One JSON line per compiled kernel: registers, bytes of stack and shared memory, spilled or not.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import triton
from amcl_fast.kernels import align, decorrelate, dense, gathered, select
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia_driver
from triton.runtime.jit import JITFunction

CUOBJDUMP = Path(nvidia_driver.__file__).parent / "bin" / "cuobjdump"


class _Offline:
    """As much of a driver as compilation asks for."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)


def cases() -> Iterator[tuple[str, Callable[[], object]]]:
    """Calls that together reach every configuration the launchers can choose."""
    half, single = torch.bfloat16, torch.float32

    def rows(n: int, d: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(2, n, d, dtype=dtype)

    skip = torch.zeros(512, 2, dtype=torch.int64)
    for dtype in (half, single):
        for d in (64, 128, 512):
            x, y = rows(512, d, dtype), rows(4096, d, dtype)
            yield f"select {dtype} d={d}", lambda x=x, y=y: select.hardest(x, y, skip, 100)
        for d in (128, 2048):
            x = rows(256, d, dtype)
            yield f"align {dtype} d={d}", lambda x=x: _align(x, x)
            yield f"align constant {dtype} d={d}", lambda x=x: _align(x, None)
    for dtype in (half, torch.float16, single):
        for d in (64, 128, 512):
            x, y = rows(512, d, dtype), rows(2048, d, dtype)
            for phi in (False, True):
                name = f"contrast {'adaptive' if phi else 'constant'} {dtype} d={d}"
                yield f"{name} top", lambda x=x, y=y, phi=phi: _contrast(x, y, phi, 100)
                yield f"{name} all", lambda x=x, y=y, phi=phi: _contrast(x, y, phi, y.shape[1] - 2)
        for phi in (False, True):
            x = rows(300, 256, dtype)
            name = f"decorrelate {'adaptive' if phi else 'constant'} {dtype}"
            yield name, lambda x=x, phi=phi: _decorrelate(x, x if phi else None)
    x = rows(512, 128, half)
    yield "select queue", lambda: select.hardest(x, torch.empty(2, 128, 65536, dtype=half).mT, None, 1024)


def _align(x: torch.Tensor, phi: torch.Tensor | None) -> None:
    _, saved, _ = align.align_forward(x, x, phi, phi, None, 0.1, 2.0, 0.5, 1e-4)
    needs = (True, True, phi is not None, phi is not None)
    align.align_backward(torch.empty(x.shape[:2]), saved, x, x, phi, phi, needs)


def _contrast(x: torch.Tensor, y: torch.Tensor, phi: bool, kept: int) -> None:
    tables = (x, y, x, y) if phi else (x, y, None, None)
    offset = torch.zeros(()) if phi else None
    skip = torch.zeros(x.shape[1], 2, dtype=torch.int64)
    needs = (True, True, phi, phi)
    gradient = torch.empty(x.shape[:2])
    settings = (0.1, 2.0, 1e-4)
    for mean in (False, True):
        if kept < y.shape[1] - 2:
            s = torch.empty(*x.shape[:2], kept)
            chosen = s.to(torch.int32)
            _, slope_s, slope_r, _ = gathered.gathered_forward(
                tables[2], tables[3], offset, s, chosen, mean, *settings, x.shape[2]
            )
            gathered.gathered_backward(gradient, slope_s, slope_r, chosen.zero_(), *tables, needs)
        else:
            dense.dense_forward(*tables, offset, skip, mean, *settings)
            dense.dense_backward(gradient, gradient, *tables, offset, skip, mean, *settings, needs)


def _decorrelate(x: torch.Tensor, phi: torch.Tensor | None) -> None:
    settings = (None if phi is None else torch.zeros(()), 0.1, 2.0, 5e-3, 1e-6)
    needs = (True, True, phi is not None, phi is not None)
    decorrelate.decorrelate_forward(x, x, phi, phi, *settings)
    decorrelate.decorrelate_backward(torch.empty(x.shape[0]), x, x, phi, phi, *settings, needs)


def usage(cubin: bytes) -> dict[str, int]:
    """Registers and bytes of stack per thread, by cuobjdump."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return {name.lower(): int(re.search(rf"\b{name}:(\d+)", text)[1]) for name in ("REG", "STACK")}


def main(arch: int, part: int = 0, parts: int = 1) -> None:
    """Compile every `parts`-th case and print its kernels."""
    triton.runtime.driver.set_active(_Offline(arch))
    compiled: dict[str, tuple[str, object]] = {}
    run, label = JITFunction.run, ""

    def compile_only(self: JITFunction, *args: object, grid: object, warmup: bool, **kwargs: object) -> object:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        if kernel.hash not in compiled:
            compiled[kernel.hash] = (label, kernel)
            module = self.__module__.rsplit(".", 1)[-1]
            line = {
                "arch": arch,
                "kernel": f"{module}.{self.__name__.strip('_')}",
                "case": label,
                "warps": kernel.metadata.num_warps,
                "shared": kernel.metadata.shared,
                **usage(kernel.asm["cubin"]),
            }
            print(json.dumps(line), flush=True)
        return kernel

    JITFunction.run = compile_only
    for i, (name, call) in enumerate(cases()):
        if i % parts == part:
            label = name
            call()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

"""Compile the kernels for GPUs that are not there, exactly as the launchers would, and print what they use.

    python -m tests.helpers.kernels.offline 80 90 100 [--known tests/kernels/resources.jsonl [--write]]

The launchers run on CPU tensors with a driver that only names the target, so every configuration comes from their own
tables. One JSON line per kernel: registers and bytes of stack per thread, bytes of shared memory per block, and how
many float32 products and sums the assembler is free to fuse.

Compiling all takes nine minutes of one core. What comes out follows from what goes in, so a file of known results says
it as well: its keys are made of all that goes in (the source and what it calls, constants, options, the versions of
Triton and of its assembler). One kernel in `SAMPLE` is compiled all the same.
"""

import argparse
import hashlib
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia_driver
from triton.runtime.jit import JITFunction

from amcl_fast.kernels import align, common, decorrelate, dense, launch, perplexity, rows, select, topk, total
from tests.helpers.kernels.standin import unfilled

CUOBJDUMP = Path(nvidia_driver.__file__).parent / "bin" / "cuobjdump"

# Those that say how they are rounded, mul.rn.f32, are left as they are.
FUSIBLE = re.compile(r"\b(?:mul|add|sub)(?:\.ftz)?\.f32\b")

SAMPLE = 16


class _Offline:
    """As much of a driver as compilation asks for."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_device(self) -> int:
        # Triton keeps one cache per device, so each target is a device of its own.
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)


def cases() -> Iterator[tuple[str, Callable[[], object]]]:
    """Calls that together reach every configuration the launchers can choose."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        for d in (64, 128, 512):
            yield f"select {name} d={d}", lambda d=d, t=dtype: _select(d, t)
            yield f"select of many {name} d={d}", lambda d=d, t=dtype: _select(d, t, 8192)
            yield f"select of a queue {name} d={d}", lambda d=d, t=dtype: _select_of_a_queue(d, t, 100)
        # Long lists: entries of a row in several blocks.
        for top_k in (1, 1024, 20000):
            yield f"select {top_k} of a queue {name}", lambda k=top_k, t=dtype: _select_of_a_queue(128, t, k)
        for adaptive in (True, False):
            kind = "adaptive" if adaptive else "constant"
            for d, mean in ((64, False), (128, False), (512, False), (128, True), (512, True)):
                label = f"all {name} d={d} {kind}{' mean' if mean else ''}"
                yield label, lambda d=d, t=dtype, a=adaptive, m=mean: _all(d, t, a, m)
                yield f"{label}, one table", lambda d=d, t=dtype, a=adaptive, m=mean: _all(d, t, a, m, one=True)
            # MoCo: nothing to skip, no gradient of the queue; and the score without an offset.
            yield f"all of a queue {name} {kind}", lambda t=dtype, a=adaptive: _all(128, t, a, False, queue=True)
            for d in (128, 512):
                yield f"top {name} d={d} {kind}", lambda d=d, t=dtype, a=adaptive: _top(d, t, a)
                yield f"top of a queue {name} d={d} {kind}", lambda d=d, t=dtype, a=adaptive: _top(d, t, a, queue=True)
            yield f"top {name} {kind}, one table", lambda t=dtype, a=adaptive: _top(512, t, a, one=True)
            for d in (128, 2048):
                yield f"align {name} d={d} {kind}", lambda d=d, t=dtype, a=adaptive: _align(d, t, a)
            for d in (400, 1000, 2048):
                yield f"decorrelate {name} d={d} {kind}", lambda d=d, t=dtype, a=adaptive: _decorrelate(d, t, a)
        for d, mean in ((64, False), (128, False), (512, False), (128, True)):
            label = f"all {name} d={d}, τ per anchor{', mean' if mean else ''}"
            yield label, lambda d=d, t=dtype, m=mean: _all_per_anchor(d, t, m, False)
            yield f"{label}, one table", lambda d=d, t=dtype, m=mean: _all_per_anchor(d, t, m, True)
        for d in (64, 128, 512):
            yield f"perplexity {name} d={d}", lambda d=d, t=dtype: _perplexity_of_all(d, t)
        for d in (128, 4096):
            yield f"rows {name} d={d}", lambda d=d, t=dtype: _rows(d, t)
    for d in (2048, 8192):
        yield f"top d={d}, one table", lambda d=d: _top(d, torch.bfloat16, True, one=True)
    yield "top, τ per anchor", _top_per_anchor
    yield "perplexity of the hardest", _perplexity_of_chosen
    yield "φ of both views, and the total", _features


def _tables(d: int, dtype: torch.dtype, adaptive: bool, rows: int) -> tuple[torch.Tensor | None, ...]:
    x, y = torch.empty(2, 512, d, dtype=dtype), torch.empty(2, rows, d, dtype=dtype)
    return (x, y, x, y) if adaptive else (x, y, None, None)


def _offset(adaptive: bool) -> torch.Tensor | None:
    return torch.zeros(()) if adaptive else None


def _skip(rows: int) -> torch.Tensor:
    return torch.zeros(rows, 2, dtype=torch.int64)


def _select(d: int, dtype: torch.dtype, rows: int = 512) -> None:
    x, y = torch.empty(2, rows, d, dtype=dtype), torch.empty(2, 2048, d, dtype=dtype)
    select.hardest(x, y, _skip(rows), 100)


def _select_of_a_queue(d: int, dtype: torch.dtype, top_k: int) -> None:
    select.hardest(torch.empty(2, 512, d, dtype=dtype), torch.empty(2, d, 65536, dtype=dtype).mT, None, top_k)


def _all(d: int, dtype: torch.dtype, adaptive: bool, mean: bool, queue: bool = False, one: bool = False) -> None:
    tables, gradient = _tables(d, dtype, adaptive, 512 if one else 2048), torch.empty(2, 512)
    settings = (None, None) if queue else (_offset(adaptive), _skip(512))
    settings += (mean, 0.1, 2.0, 1e-4)
    extra = None if mean else gradient
    _, _, shares, *_ = dense.dense_forward(*tables, *settings, extra)
    needs = (True, not (queue or one), adaptive, adaptive and not one, adaptive and not queue)
    dense.dense_backward(gradient, shares, *_one(tables, one), *settings, needs)


def _top(d: int, dtype: torch.dtype, adaptive: bool, queue: bool = False, one: bool = False) -> None:
    # Of a queue most keys have no pair or few.
    tables, gradient = _tables(d, dtype, adaptive, 512 if one else 65536 if queue else 2048), torch.empty(2, 512)
    offset = None if queue else _offset(adaptive)
    s, chosen = torch.empty(2, 512, 100), torch.zeros(2, 512, 100, dtype=torch.int32)
    for mean, extra in ((False, gradient), (False, None), (True, None)):
        _, slope_s, slope_r, *_ = topk.topk_forward(*tables[2:], offset, s, chosen, mean, 0.1, 2.0, 1e-4, d, extra)
    needs = (True, not (queue or one), adaptive, adaptive and not one, offset is not None)
    topk.topk_backward(gradient, slope_s, slope_r, chosen, *_one(tables, one), offset, needs)


def _all_per_anchor(d: int, dtype: torch.dtype, mean: bool, one: bool) -> None:
    # The weights need no gradient of τ where no parameter has one: PerplexityTemperature's.
    tables, tau = _tables(d, dtype, False, 512 if one else 2048), torch.empty(2, 512)
    settings = (None, _skip(512), mean, 0.1, 2.0, 0.0)
    for needs_tau in (True, False):
        _, _, shares, *_ = dense.dense_forward(*tables, *settings, None if mean else tau, tau, needs_tau)
    needs = (True, not one, False, False, False)
    dense.dense_backward(tau, shares, *_one(tables, one), *settings, needs, tau)


def _top_per_anchor() -> None:
    tau, s = torch.empty(2, 512), torch.empty(2, 512, 100)
    chosen = torch.zeros(2, 512, 100, dtype=torch.int32)
    for (mean, extra), needs_tau in product(((False, tau), (False, None), (True, None)), (True, False)):
        topk.topk_forward(None, None, None, s, chosen, mean, 0.1, 2.0, 0.0, 128, extra, tau, needs_tau)


def _perplexity_of_all(d: int, dtype: torch.dtype) -> None:
    x, y = torch.empty(2, 512, d, dtype=dtype), torch.empty(2, 2048, d, dtype=dtype)
    for skip in (_skip(512), None):
        perplexity.perplexity_of_all(x, y, skip, 0.25, 0.01, 1.0)


def _perplexity_of_chosen() -> None:
    for top_k in (1, 20, 100, 200, 400, 1000, 20000):
        perplexity.perplexity_of_chosen(torch.empty(2, 512, top_k), 0.25, 0.01, 1.0)


def _one(tables: tuple[torch.Tensor | None, ...], one: bool) -> tuple[torch.Tensor | None, ...]:
    """As the backward passes take a table whose rows are anchors and candidates."""
    return (tables[0], None, tables[2], None) if one else tables


def _align(d: int, dtype: torch.dtype, adaptive: bool) -> None:
    x = torch.empty(2, 256, d, dtype=dtype)
    phi = x if adaptive else None
    for y_needs in (True, False):
        _, factors, _ = align.align_forward(x, x, phi, phi, _offset(adaptive), 0.1, 2.0, 0.5, 1e-4)
        align.align_backward(torch.empty(2, 256), factors, x, x, phi, phi, (True, y_needs, adaptive, adaptive))


def _decorrelate(d: int, dtype: torch.dtype, adaptive: bool) -> None:
    x = torch.empty(2, d, 16, dtype=dtype)
    phi = x if adaptive else None
    for need, offset in product((False, True), (None, torch.zeros(())) if adaptive else (None,)):
        needs = (need, need, need and adaptive, need and adaptive, False)
        decorrelate.decorrelate(x, x, phi, phi, offset, 0.1, 2.0, 5e-3, 1e-6, needs)


def _rows(d: int, dtype: torch.dtype) -> None:
    # Projections of `dtype`, and of float32 under autocast; with φ and without; MoCo has no list of skipped columns and
    # no gradient of its second view; SimSiam wants the table alone. What differs by the dtype is a conversion.
    product = None if dtype == torch.float32 else dtype
    wide = d > 128
    for given in (torch.float32, dtype) if dtype == torch.bfloat16 and not wide else (dtype,):
        x = torch.empty(512, 2, d, dtype=given).transpose(0, 1)
        for table, skip in ((True, 0), (product is None, 0), (True, None), (product is None, None))[: 1 if wide else 4]:
            made, _ = rows.rows_forward(x, x, 1.0, True, table, product, rows.RAW, skip)
            rows.rows_backward(made, x, x, x, None if skip is None else x, 1.0, True, rows.RAW)
    made, _ = rows.rows_forward(x, x, 1.0, True, True, None, rows.NONE, None)
    rows.rows_backward(made, x, x, x, None, 1.0, True, rows.NONE)


def _features() -> None:
    x = torch.empty(2, 512, 128)
    for unit in (True, False):
        for dtype in (None, torch.bfloat16):
            for table in {dtype is None, False}:
                made, _ = rows.rows_forward(x, x, 2.0, unit, table, dtype, rows.READY, None)
                rows.rows_backward(made, x, x, x, x, 2.0, unit, rows.READY)
            made, _ = rows.rows_forward(x, None, 2.0, unit, dtype is None, dtype, rows.NONE, None)
            rows.rows_backward(made, x, None, x, None, 2.0, unit, rows.NONE)
    for joined in (True, False):
        total.total_forward(torch.empty(2, 256), torch.empty(2, 512), joined, 1.0)
        total.total_backward(torch.empty(()), torch.empty(2, 256), torch.empty(2, 512), joined, 1.0)


def usage(cubin: bytes) -> dict[str, int]:
    """Registers and bytes of stack per thread, by cuobjdump."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    names = {"registers": "REG", "stack": "STACK"}
    return {key: int(re.search(rf"\b{name}:(\d+)", text)[1]) for key, name in names.items()}


class Known:
    """Takes the place of a compiled kernel, which is never launched."""


class Compiler:
    """Stands between the launchers and Triton's compiler; tells what every kernel uses, once.

    Args:
        known: lines by their keys, of kernels that are compiled only if they are in the sample.
        tell: gets the line of each kernel, with the first case that launches it and whether it was `compiled`.
    """

    def __init__(self, known: dict[str, dict[str, Any]], tell: Callable[[dict[str, Any]], object]) -> None:
        self._known, self._tell, self._told = known, tell, set[str]()
        self.arch, self.case = 0, ""

    def install(self) -> None:
        """Have Triton compile here, and launch nothing."""
        run, compiled = JITFunction.run, JITFunction._do_compile

        def prepare(function: JITFunction, *args: object, grid: object, warmup: bool, **kwargs: object) -> object:
            return run(function, *launch.general(function, args), grid=grid, warmup=True, **kwargs)

        def compile_once(function: JITFunction, key: str, *arguments: Any) -> object:
            signature, device, constants, options, attributes, _ = arguments
            kernels, _, _, backend, _ = function.device_caches[device]
            source = function.ASTSource(function, signature, constants, attributes)
            parts = triton.__version__, source.hash(), backend.hash(), options.hash()
            name = hashlib.sha256("-".join(parts).encode()).hexdigest()[:24]
            line = self._known.get(name)
            again = line is None or int(name, 16) % SAMPLE == 0
            kernel = compiled(function, key, *arguments) if again else Known()
            kernels[key] = kernel
            if name not in self._told:
                self._told.add(name)
                line = self._line(name, function, kernel) if again else line
                self._tell({"case": self.case, "compiled": again, **line})
            return kernel

        JITFunction.run, JITFunction._do_compile = prepare, compile_once

    def _line(self, name: str, function: JITFunction, kernel: Any) -> dict[str, Any]:
        return {
            "key": name,
            "arch": self.arch,
            "kernel": function.__name__.strip("_"),
            "warps": kernel.metadata.num_warps,
            "shared": kernel.metadata.shared,
            "fusible": len(FUSIBLE.findall(kernel.asm["ptx"])),
            **usage(kernel.asm["cubin"]),
        }


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Lines of a file of known results, by their keys."""
    lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return {line["key"]: line for line in lines}


def write(path: Path, lines: list[dict[str, Any]]) -> None:
    """A file of known results."""
    plain = [{name: value for name, value in line.items() if name not in ("case", "compiled")} for line in lines]
    plain.sort(key=lambda line: (line["arch"], line["kernel"], line["key"]))
    path.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in plain))


def main() -> None:
    """Compile and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arch", nargs="+", type=int)
    parser.add_argument("--known", type=Path, help="a file of results; what it has is not compiled, but for a sample")
    parser.add_argument("--write", action="store_true", help="write that file anew, for these architectures alone")
    arguments = parser.parse_args()
    lines: list[dict[str, Any]] = []

    def tell(line: dict[str, Any]) -> None:
        lines.append(line)
        print(json.dumps(line), flush=True)

    compiler = Compiler(read(arguments.known) if arguments.known else {}, tell)
    compiler.install()
    common.capability = lambda x: divmod(compiler.arch, 10)
    for compiler.arch, (compiler.case, call) in product(arguments.arch, list(cases())):
        triton.runtime.driver.set_active(_Offline(compiler.arch))
        with unfilled():  # nobody reads what torch's operators would compute
            call()
    if arguments.write:
        write(arguments.known, lines)


if __name__ == "__main__":
    main()

"""What the machine code of a kernel holds: the loop that multiplies, its barriers, atomics and matrix instructions.

    python -m tests.helpers.kernels.machine_code [--case "select of many bfloat16 d=128"] [--arch 90]

The kernels are compiled as offline.py does it, for a GPU that is not there, and disassembled by the nvdisasm beside
Triton's ptxas. One JSON line per kernel. Instructions are those from the first to the last address of a loop, so that
every branch in it counts as taken; a similarity is one float32 element of a matrix instruction's result.
"""

import argparse
import json
import re
import subprocess
import tempfile
from dataclasses import dataclass

import triton
from triton.runtime.jit import JITFunction

from amcl_fast.kernels import common, launch
from tests.helpers.kernels import offline

NVDISASM = offline.CUOBJDUMP.with_name("nvdisasm")
# An instruction: address, predicate, opcode, operands.
_LINE = re.compile(r"^\s*/\*([0-9a-f]+)\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)$")
_ATOMIC = re.compile(r"^(ATOM|ATOMS|ATOMG|RED|REDG|REDS)(\.|$)")
# Results of one instruction of a warp group or a warp: HGMMA.64x64x16 and HMMA.16816 (m16n8k16).
_SHAPE = re.compile(r"^HGMMA\.(?:SP\.)?(\d+)x(\d+)x\d+|^HMMA\.(\d\d)(\d)")


@dataclass(frozen=True)
class Loop:
    """The innermost loop that holds matrix instructions, or if there is none, the longest.

    Attributes:
        instructions: in it, branches counted as taken.
        similarities: results of its matrix instructions that one thread has; 0 if it has none.
        barriers: of the whole block.
        atomics: on global or shared memory.
        products: its matrix instructions in their order, opcodes with shapes and types, `… new` where one starts from
            zero instead of its predecessor's result.
    """

    instructions: int
    similarities: int
    barriers: int
    atomics: int
    products: tuple[str, ...]

    @property
    def per_similarity(self) -> float:
        """Instructions a similarity."""
        return self.instructions / self.similarities if self.similarities else float("nan")


def disassemble(cubin: bytes) -> list[tuple[int, str, str]]:
    """Instructions as (address, opcode, operands), in their order; targets of branches as addresses."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([NVDISASM, "-c", file.name], capture_output=True, text=True, check=True).stdout
    found: list[tuple[int, str, str]] = []
    labels: dict[str, int] = {}
    waiting: list[str] = []
    for line in text.splitlines():
        if label := re.match(r"^(\.L_x_\d+):", line):
            waiting.append(label[1])
        elif (match := _LINE.match(line)) and not match[2].startswith("UNDEF"):
            address = int(match[1], 16)
            labels |= dict.fromkeys(waiting, address)
            waiting.clear()
            found.append((address, match[2], match[3]))
    return [(a, op, re.sub(r"`\((\.L_x_\d+)\)", lambda m: f"{labels.get(m[1], -1)}", rest)) for a, op, rest in found]


def loop(code: list[tuple[int, str, str]]) -> Loop:
    """The loop of a kernel that matters."""
    spans = []
    for address, opcode, rest in code:
        if opcode.startswith("BRA") and (target := re.search(r"(\d+)\s*;?\s*$", rest.strip(" ;"))):
            start = int(target[1])
            # A branch to itself ends every kernel.
            if start < address:
                spans.append([line for line in code if start <= line[0] <= address])
    if not spans:
        raise ValueError("the kernel must have a loop, got none")
    multiplying = [span for span in spans if any(_SHAPE.match(op) for _, op, _ in span)]
    span = min(multiplying, key=len) if multiplying else max(spans, key=len)
    products, similarities = [], 0
    for _, opcode, rest in span:
        if shape := _SHAPE.match(opcode):
            new = opcode.startswith("HGMMA") and ", RZ" in rest
            products.append(f"{opcode} new" if new else opcode)
            # A chain of them has one result.
            if new:
                similarities += int(shape[1]) * int(shape[2]) // 128
    return Loop(
        instructions=len(span),
        similarities=similarities,
        barriers=sum(op.startswith("BAR.") for _, op, _ in span),
        atomics=sum(bool(_ATOMIC.match(op)) for _, op, _ in span),
        products=tuple(products),
    )


def compiled(case: str, arch: int = 90) -> dict[str, triton.compiler.CompiledKernel]:
    """The kernels that a case of offline.py launches, by name; the last one where a name comes twice."""
    call = dict(offline.cases())[case]
    run, found = JITFunction.run, {}

    def compile_only(self: JITFunction, *args: object, grid: object, warmup: bool, **kwargs: object) -> object:
        kernel = run(self, *launch.general(self, args), grid=grid, warmup=True, **kwargs)
        found[self.__name__.strip("_")] = kernel
        return kernel

    capability, JITFunction.run = common.capability, compile_only
    common.capability = lambda x: divmod(arch, 10)
    try:
        triton.runtime.driver.set_active(offline._Offline(arch))
        call()
    finally:
        JITFunction.run, common.capability = run, capability
    return found


def counts(case: str, arch: int = 90) -> dict[str, dict[str, object]]:
    """Of each kernel of a case: the loop, registers, stack, shared memory, and how many blocks fit by them."""
    result = {}
    for name, kernel in compiled(case, arch).items():
        used = offline.usage(kernel.asm["cubin"])
        threads, shared = 32 * kernel.metadata.num_warps, kernel.metadata.shared
        # Registers come in units of 8 a thread; 228 KiB a multiprocessor, of which each block takes one itself.
        by_registers = 65536 // (-(-used["registers"] // 8) * 8 * threads)
        blocks = min(by_registers, 228 * 1024 // (shared + 1024), 2048 // threads)
        line: dict[str, object] = {"threads": threads, **used, "shared": shared, "blocks": blocks}
        code = disassemble(kernel.asm["cubin"])
        line |= {"all_instructions": len(code), "all_atomics": sum(bool(_ATOMIC.match(op)) for _, op, _ in code)}
        try:
            found = loop(code)
        except ValueError:
            result[name] = line
            continue
        result[name] = line | {
            "instructions": found.instructions,
            "similarities": found.similarities,
            "per_similarity": round(found.per_similarity, 1) if found.similarities else None,
            "barriers": found.barriers,
            "atomics": found.atomics,
            "products": list(found.products),
        }
    return result


def main() -> None:
    """Print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", help="of offline.py's cases; several may be given")
    parser.add_argument("--arch", type=int, default=90)
    arguments = parser.parse_args()
    for case in arguments.case or ["select of many bfloat16 d=128"]:
        for name, line in counts(case, arguments.arch).items():
            print(json.dumps({"case": case, "kernel": name, **line}), flush=True)


if __name__ == "__main__":
    main()

"""Peak memory of a run beyond what stood before it.

On CUDA the allocator knows it. On the CPU it is resident memory, measured in a process of its own for each run: one
call to load libraries and compile; what that left is given back to the system; the kernel's high-water mark is reset
(/proc/self/clear_refs); the second call raises it.
"""

import ctypes
import dataclasses
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch

from .cases import Case
from .peers import implementation
from .step import gradient_bytes, step_of
from .system import memory, reset_peak

_PATIENCE = 300  # seconds for one measurement, start and compilation included


def extra_bytes(run: Callable[[], object], device: str) -> int | None:
    """Peak bytes while `run` runs for the second time, beside what stood before; its result counts.

    None where the CPU's system does not tell (no Linux). On `cpu`, call it in a fresh process: memory that earlier
    work has freed and the allocator has kept would hide what is measured.
    """
    run()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        reset_peak()
        before = memory()["resident"]
        run()
        return max(0, memory()["peak"] - before)
    except (OSError, AttributeError):
        return None


def in_fresh_process(case: Case, name: str, device: str = "cpu") -> int | None:
    """`extra_bytes` of a case's step less its gradients, by the implementation `name`, in a process of its own.

    None if that process fails or takes five minutes: then it says why on stderr.
    """
    request = {"case": dataclasses.asdict(case), "name": name, "device": device, "threads": torch.get_num_threads()}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", __name__]
    try:
        done = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, env=environment, timeout=_PATIENCE
        )
    except subprocess.TimeoutExpired:
        problem = f"took longer than {_PATIENCE} s"
    else:
        if not done.returncode:
            return json.loads(done.stdout.splitlines()[-1])
        problem = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    print(f"warning: memory of {case.name!r} by {name} is not measured: {problem}", file=sys.stderr, flush=True)
    return None


def _answer(request: dict[str, Any]) -> int | None:
    torch.set_num_threads(request["threads"])
    case, device = Case(**request["case"]), request["device"]
    operands = case.operands(device, case.dtype_on(device))
    measured = extra_bytes(step_of(implementation(request["name"], case), [operands]), device)
    return None if measured is None else max(0, measured - gradient_bytes(operands))


if __name__ == "__main__":
    print(json.dumps(_answer(json.load(sys.stdin))))

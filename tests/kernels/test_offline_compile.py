"""Compiled for GPUs that are not there: no error, no spilled register, no more shared memory than a block may have."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
KNOWN = ROOT / "tests" / "kernels" / "resources.jsonl"

# Usable by one block, bytes.
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
# Both passes, or both loops of one kernel, must form the same bits of s/τ − β·Ω(τ), which 1/τ makes large.
FAITHFUL = {"dense_forward", "dense_gradient", "topk_rows"}


def kernels():
    """What `offline.py` prints of every kernel for every architecture."""
    # Not in this process: the interpreter, once chosen, holds for all of it.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.helpers.kernels.offline", *map(str, SHARED), "--known", KNOWN]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


# Nine minutes of one core where all kernels have changed, or Triton has; one test, so that it is done once.
@pytest.mark.timeout(3600)
def test_resources():
    found = kernels()
    for arch, shared in SHARED.items():
        of_arch = [kernel for kernel in found if kernel["arch"] == arch]
        assert len({kernel["kernel"] for kernel in of_arch}) >= 14
        for kernel in of_arch:
            assert kernel["stack"] == 0, kernel
            assert kernel["shared"] <= shared, kernel
            assert kernel["fusible"] == 0 or kernel["kernel"] not in FAITHFUL, kernel
        assert any(kernel["fusible"] for kernel in of_arch)
    known = {line["key"]: line for line in map(json.loads, KNOWN.read_text().splitlines())}
    for kernel in found:
        if kernel["compiled"] and kernel["key"] in known:
            assert known[kernel["key"]].items() <= kernel.items(), "what is known of a kernel is what was compiled"
    keys = {kernel["key"] for kernel in found}
    # Another Triton knows none of them; then all were compiled.
    if keys & known.keys():
        assert keys == known.keys(), (
            f"{len(keys - known.keys())} kernels are not in {KNOWN.name}, {len(known.keys() - keys)} there are gone: "
            f"python -m tests.helpers.kernels.offline 80 90 100 --known {KNOWN.relative_to(ROOT)} --write"
        )

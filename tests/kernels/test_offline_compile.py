"""Compiled for GPUs that are not there: no error, no spilled register, no more shared memory than a block may have."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Usable by one block, bytes.
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
PARTS = 2
# Both passes, or both loops of one kernel, must form the same bits of s/τ − β·Ω(τ), which 1/τ makes large.
FAITHFUL = {"dense_forward", "dense_gradient", "topk_rows"}


def kernels():
    """What `offline.py` prints of every kernel for every architecture."""
    # Not in this process: the interpreter, once chosen, holds for all of it.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.kernels.offline", "--part", f"{part}/{PARTS}", *map(str, SHARED)],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for part in range(PARTS)
    ]
    lines = []
    try:
        for process in processes:
            out, err = process.communicate()
            assert process.returncode == 0, err[-4000:]
            lines += [json.loads(line) for line in out.splitlines()]
    finally:
        for process in processes:
            process.kill()
    return lines


# Eight minutes of one core where nothing is in Triton's cache; one test, so that it is done once.
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

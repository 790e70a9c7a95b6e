"""Compiled for GPUs that are not there: no error, no spilled register, no more shared memory than a block may have."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

# Usable by one block, bytes.
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
# Both passes, or both loops of one kernel, must form the same bits of s/τ − β·Ω(τ), which 1/τ makes large.
FAITHFUL = {"dense_forward", "dense_gradient", "topk_rows"}


def kernels(folder):
    """What `offline.py` prints of every kernel for every architecture."""
    # Not in this process: the interpreter, once chosen, holds for all of it. One for each architecture, so that none
    # compiles what another does: cases share kernels, architectures do not.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    processes, lines = {}, []
    try:
        for arch in SHARED:
            # Files: a pipe that nobody reads yet holds a process up once it is full.
            with (folder / f"{arch}.out").open("w") as out, (folder / f"{arch}.err").open("w") as err:
                command = [sys.executable, "-m", "tests.helpers.kernels.offline", str(arch)]
                processes[arch] = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=out, stderr=err)
        for arch, process in processes.items():
            assert process.wait() == 0, (folder / f"{arch}.err").read_text()[-4000:]
            lines += [json.loads(line) for line in (folder / f"{arch}.out").read_text().splitlines()]
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return lines


# Eight minutes of one core where nothing is in Triton's cache; one test, so that it is done once.
@pytest.mark.timeout(3600)
def test_resources(tmp_path):
    found = kernels(tmp_path)
    for arch, shared in SHARED.items():
        of_arch = [kernel for kernel in found if kernel["arch"] == arch]
        assert len({kernel["kernel"] for kernel in of_arch}) >= 14
        for kernel in of_arch:
            assert kernel["stack"] == 0, kernel
            assert kernel["shared"] <= shared, kernel
            assert kernel["fusible"] == 0 or kernel["kernel"] not in FAITHFUL, kernel
        assert any(kernel["fusible"] for kernel in of_arch)

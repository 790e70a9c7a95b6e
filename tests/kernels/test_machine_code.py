"""What selection costs at the least: counted in the machine code for sm_90 of its launches for bf16, d = 128."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

# Shared memory of a multiprocessor that its blocks may use, bytes, and registers.
SHARED, REGISTERS = 227 * 1024, 65536


@pytest.fixture(scope="module")
def kernels():
    """What `machine_code.py` prints of the kernels of a SimCLR batch, by name."""
    # Not in this process: the interpreter, once chosen, holds for all of it.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.helpers.kernels.machine_code", "--case", "select of many bfloat16 d=128"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return {line["kernel"]: line for line in map(json.loads, run.stdout.splitlines())}


@pytest.mark.parametrize("name", ["select_maxima", "select_bits"])
def test_loops_of_both_passes(kernels, name):
    kernel = kernels[name]
    # Every branch of the loop counted as taken, that of skipped columns too.
    assert 0 < kernel["per_similarity"] <= 16
    assert kernel["barriers"] <= 2
    assert kernel["atomics"] == 0
    assert kernel["stack"] == 0


@pytest.mark.parametrize("name", ["select_maxima", "select_bits"])
def test_two_blocks_on_a_multiprocessor(kernels, name):
    kernel = kernels[name]
    assert 2 * kernel["registers"] * kernel["threads"] <= REGISTERS
    assert 2 * kernel["shared"] <= SHARED
    assert kernel["blocks"] >= 2


def test_one_chain_of_products(kernels):
    """The same instructions in the same order, so the same bits: what a maximum tells need not be formed again."""
    chain = kernels["select_maxima"]["products"]
    # d = 128 in steps of 16, for 64 rows at a time.
    assert chain == 2 * (["HGMMA.64x64x16.F32.BF16 new"] + 7 * ["HGMMA.64x64x16.F32.BF16"])
    assert kernels["select_bits"]["products"] == chain
    assert kernels["select_values"]["products"] == chain[:8]


def test_no_atomics_and_no_stack(kernels):
    names = {"maxima", "bounds", "bits", "lists", "values", "crowded", "pick"}
    assert set(kernels) == {f"select_{name}" for name in names}
    for kernel in kernels.values():
        assert kernel["stack"] == 0
        assert kernel["all_atomics"] == 0

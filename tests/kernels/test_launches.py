"""Every launch of real sizes through Triton's own launcher, with a libcuda that refuses what the driver refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.kernels.standin import compiler

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

# (Triton's launches, calls of torch's operators that launch) of a step, forward and backward: a change is meant.
# `python -m tests.helpers.kernels.launching --table` prints it.
STEPS = {
    "SimCLR N=256 softmax float32": (13, 16),
    "SimCLR N=65536 topk_mean float32": (771, 12),
    "SimCLR N=256 softmax bfloat16": (13, 15),
    "SimCLR N=65536 topk_mean bfloat16": (736, 11),
    "SimCLR N=256 softmax float16": (13, 15),
    "SimCLR N=65536 topk_mean float16": (736, 11),
    "SimCLR N=256 topk_softmax": (23, 16),
    "SimCLR N=256 topk_mean": (23, 16),
    "NT-Xent N=256": (11, 1),
    "SimCLR N=65536 softmax": (13, 15),
    "SimCLR N=65536 top 2000": (1808, 16),
    "SimCLR N=4096 C=16": (65, 16),
    "SimCLR N=512 d=512 softmax": (13, 15),
    "SimCLR N=512 d=512 topk_softmax": (23, 16),
    "SimCLR N=512 d=8192 softmax": (13, 15),
    "SimCLR N=512 d=8192 topk_softmax": (23, 16),
    "MoCo N=256 K=262144 softmax": (16, 32),
    "MoCo N=256 K=262144 topk_softmax": (26, 33),
    "MoCo N=256 K=65536": (26, 33),
    "perplexity N=256 topk_softmax": (13, 1),
    "perplexity N=256 softmax": (5, 0),
    "perplexity N=4096 topk_mean": (20, 1),
    "perplexity N=65536 softmax": (4, 0),
    "perplexity N=65536 top 2000": (1798, 1),
    "τ per anchor N=256 softmax": (4, 1),
    "SimSiam N=4096 d=8192 float32": (14, 46),
    "Barlow d=8192 N=1024 float32": (22, 199),
    "SimSiam N=4096 d=8192 bfloat16": (14, 46),
    "Barlow d=8192 N=1024 bfloat16": (22, 409),
    "SimSiam N=4096 d=8192 float16": (14, 46),
    "Barlow d=8192 N=1024 float16": (22, 275),
    "Barlow d=2048 N=512 C=16": (22, 463),
}


def alone(*arguments):
    """What a Python of its own prints: the interpreter of Triton, once chosen, holds for all of a process."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.fixture(autouse=True)
def able():
    if torch.cuda.is_available():
        pytest.skip("a GPU is here, and its libcuda in this process's children")
    if compiler() is None:
        pytest.skip("no C compiler: Triton's launchers cannot be built")


# Where nothing is in Triton's cache a minute of compilation, which the offline compilation shares.
@pytest.mark.timeout(1800)
def test_launches_of_a_step():
    lines = alone("-m", "tests.helpers.kernels.launching", "--arch", "90").splitlines()
    found = [json.loads(line) for line in lines]
    assert {line["case"]: (line["triton"], line["torch"]) for line in found} == STEPS
    assert max(line["resident"] for line in found) < 2048  # MiB: of N = 65,536, nothing is filled


@pytest.mark.timeout(1800)
def test_in_a_process_with_the_stand_in():
    """The tests of `with_standin.py`, which no other process can run."""
    options = ("-q", "-n", "0", "-p", "no:cacheprovider", "--noconftest")
    assert "17 passed" in alone("-m", "pytest", *options, ROOT / "tests/kernels/with_standin.py").splitlines()[-1]

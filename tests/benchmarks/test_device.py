"""What of the GPU's side can run without one."""

import itertools
import time
import types

import pytest
import torch
from triton.runtime.jit import JITFunction

from benchmarks import device

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")


def test_wall_is_the_median_of_groups(monkeypatch):
    calls, waits, clock = [], [], itertools.count()
    # A millisecond from one look to the next, whatever this machine is busy with.
    monkeypatch.setattr(
        device, "time", types.SimpleNamespace(perf_counter=lambda: next(clock) / 1e3, monotonic=time.monotonic)
    )
    monkeypatch.setattr(device, "settle", lambda: waits.append(len(calls)))
    assert device.wall(lambda: calls.append(1), 0.0) == pytest.approx(0.1)
    # One call to know how long it takes, then three groups of ten, each between two waits.
    assert len(calls) == 31 and waits == [1, 1, 11, 11, 21, 21, 31]


def test_what_kernels_use_is_noted_when_they_first_run(monkeypatch):
    kernel = types.SimpleNamespace(
        n_regs=128, n_spills=6, metadata=types.SimpleNamespace(num_warps=4, shared=2048), result=None
    )
    monkeypatch.setattr(JITFunction, "run", lambda self, *args, **kwargs: kernel if args else None)
    original, function = JITFunction.run, types.SimpleNamespace(__name__="_maxima")
    with device.compiled() as found:
        assert JITFunction.run(function) is None and found == {}
        assert JITFunction.run(function, 1, grid=(1,), warmup=False) is kernel
    assert found == {"_maxima": {"registers": 128, "stack": 24, "warps": 4, "shared": 2048}}
    assert JITFunction.run is original


def test_a_gpu_takes_cases_as_they_are():
    assert device.sized(case := object()) is case
    assert device.problem().endswith("torch.cuda.is_available() is False")

"""What of the GPU's side can run without one."""

import itertools
import time
import types

import pytest
import torch
from triton import knobs

from benchmarks.gpu import device

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


def test_what_kernels_use_is_noted_when_they_are_loaded(monkeypatch, tmp_path):
    """By libcuda's own function, of which this is a stand-in."""

    def attribute(pointer, which, function):
        pointer._obj.value = {3: 24, 4: 128}[which]
        return 0 if function.value == 77 else 400

    monkeypatch.setattr(device, "_libcuda", lambda: types.SimpleNamespace(cuFuncGetAttribute=attribute))
    (tmp_path / "_select_maxima.json").write_text('{"num_warps": 4, "shared": 2048, "name": "_select_maxima"}')
    files = {
        "_select_maxima.cubin": str(tmp_path / "_select_maxima.cubin"),
        "_select_maxima.json": str(tmp_path / "_select_maxima.json"),
    }
    load = knobs.runtime.kernel_load_end_hook
    with device.compiled() as found:
        load(1, 77, "_select_maxima", files, "hash")
        with pytest.raises(RuntimeError, match="cuFuncGetAttribute returned 400"):
            load(1, 78, "_select_maxima", files, "hash")
    load(1, 77, "_select_bits", files, "hash")
    assert found == {"_select_maxima": {"registers": 128, "stack": 24, "warps": 4, "shared": 2048}}


def test_a_gpu_takes_cases_as_they_are():
    assert device.sized(case := object()) is case
    assert device.problem().endswith("torch.cuda.is_available() is False")

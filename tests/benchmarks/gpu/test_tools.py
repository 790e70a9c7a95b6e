"""NVIDIA's tools, by shell scripts of their names."""

import json
import time
from pathlib import Path

import pytest

from benchmarks.gpu import device, tools
from tests.helpers.benchmarks.tiny import document


def tool(folder, monkeypatch, name, script):
    """One of NVIDIA's tools that is a shell script."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_memcheck_tells_what_the_tool_says(monkeypatch, tmp_path):
    script = 'echo "========= ERROR SUMMARY: 0 errors, $PYTORCH_NO_CUDA_MEMORY_CACHING"'
    tool(tmp_path, monkeypatch, "compute-sanitizer", script)
    assert list(tools.memcheck()) == [{"summary": "ERROR SUMMARY: 0 errors, 1"}]
    tool(tmp_path, monkeypatch, "compute-sanitizer", "echo Invalid read; exit 9")
    with pytest.raises(tools.WrongResult, match="exit code 9: Invalid read"):
        list(tools.memcheck())


def test_memcheck_ends_what_it_started(monkeypatch, tmp_path):
    monkeypatch.setattr(tools, "_MEMCHECK_SECONDS", 1)
    tool(tmp_path, monkeypatch, "compute-sanitizer", f"sleep 1000 & echo $! > {tmp_path}/child; wait")
    assert list(tools.memcheck()) == [{"summary": "not finished within 1 s"}]
    child = Path(f"/proc/{int((tmp_path / 'child').read_text())}")
    stop = time.monotonic() + 60
    # Killed; whoever adopted it may not have looked yet.
    while child.exists() and "State:\tZ" not in (child / "status").read_text():
        assert time.monotonic() < stop
        time.sleep(0.1)


@pytest.fixture
def broken_down(tmp_path):
    """A JSON with kernels of ours and of others."""
    path = tmp_path / "gpu.json"
    found = document()
    kernels = [("_select_maxima", 2, 30.0), ("_select_bounds", 1, 90.0), ("_scatter_kernel", 1, 500.0)]
    kernels.append(("_topk_scores", 10, 100.0))
    of_ours = [{"name": n, "calls": c, "us": us} for n, c, us in kernels]
    rows = [{"case": "SimCLR, N = 4096, all rows equal", "run": "ours", "kernels": of_ours}]
    rows.append({"case": "b", "run": "dense", "kernels": [{"name": "_dense_forward", "calls": 1, "us": 900.0}]})
    found["sections"]["breakdown"] = {"environment": found["sections"]["scale"]["environment"], "rows": rows}
    path.write_text(json.dumps(found))
    return path


def test_ncu_looks_at_the_two_slowest_of_ours(monkeypatch, tmp_path, broken_down):
    tool(tmp_path, monkeypatch, "ncu", 'echo "==PROF== Connected"; echo "  $2 of $6"; echo "$@"')
    first, second = tools.ncu(broken_down, time.monotonic() + 60)
    assert (first["kernel"], second["kernel"]) == ("_select_bounds", "_select_maxima")
    assert first["text"][0] == "  regex:^_select_bounds$ of 1"
    assert first["text"][1].endswith("-m benchmarks.gpu --step SimCLR, N = 4096, all rows equal")


def test_what_ncu_refuses_is_a_row(monkeypatch, tmp_path, broken_down):
    tool(tmp_path, monkeypatch, "ncu", 'echo "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission"; exit 1')
    assert [row["refused"] for row in tools.ncu(broken_down, time.monotonic() + 60)] == 2 * [
        "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission"
    ]
    tool(tmp_path, monkeypatch, "ncu", "echo '==WARNING== No kernels were profiled.'")
    assert [row["refused"] for row in tools.ncu(broken_down, time.monotonic() + 60)] == 2 * ["exit code 0"]
    tool(tmp_path, monkeypatch, "ncu", "sleep 100")
    assert next(tools.ncu(broken_down, time.monotonic() + 1))["refused"] == "not finished within 0 s"
    (row,) = tools.ncu(tmp_path / "nothing.json", time.monotonic() + 1)
    assert row["refused"] == "nothing is broken down yet"


def test_names_of_kernels_are_those_of_the_package():
    names = tools._kernels()
    assert {"_select_maxima", "_select_bounds", "_topk_sums", "_dense_forward", "_dense_gradient"} <= names
    assert device.BACKEND == "triton" and device.KIND == "cuda"

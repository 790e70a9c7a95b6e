"""Tests of the stand-in and of `kernels/launch.py` in a process of their own, which `test_launches.py` starts."""

import random

import pytest
import torch
import triton
import triton.language as tl
from triton import knobs
from triton.runtime.jit import JITFunction

from amcl_fast.kernels.launch import launched
from amcl_fast.kernels.tile import Rows, Skip, rows_of
from tests.helpers.kernels.launching import cases, counted
from tests.helpers.kernels.standin import StandIn

FACTOR = tl.constexpr(2.0)


@triton.jit
def _fill(x, value, BLOCK: tl.constexpr):
    tl.store(x + tl.arange(0, BLOCK), value)


@triton.jit
def _product(x, S: tl.constexpr):
    at = x + tl.arange(0, S)[:, None] * S + tl.arange(0, S)[None, :]
    tile = tl.load(at)
    tl.store(at, tl.dot(tile, tl.trans(tile), input_precision="tf32"))


@triton.jit
def _mixed(table, skip, out, count, value, BLOCK: tl.constexpr, TWICE: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(table.base + at * table.row + count, at < table.rows)
    for i in tl.static_range(skip.each):
        x += tl.load(skip.base + i)
    if TWICE:
        x *= FACTOR
    tl.store(out + at, x * value, at < table.rows)


@pytest.fixture(scope="module")
def standin(tmp_path_factory):
    return StandIn(tmp_path_factory.mktemp("standin"))


@pytest.fixture(autouse=True)
def device(standin):
    standin.install(90)


def mixed(kernel, grid=(3,), rows=48, count=5, twice=True, **options):
    return kernel[grid](
        Rows(torch.zeros(64), 64, 2, 1, rows, 8), Skip(torch.zeros(4), tl.constexpr(2)), torch.zeros(64), count, 0.5,
        BLOCK=64, TWICE=twice, **options,
    )  # fmt: skip


def what(launch):
    return (launch.function, list(launch.grid), launch.block, launch.shared, launch.stream, bytes(launch.parameters))


# Of the stand-in: a launch is refused where the driver refuses it.


@pytest.fixture
def kernels(device, standin):
    x = torch.zeros(128, 128)
    found = _fill[(1,)](x, 1.5, BLOCK=64, num_warps=4), _product[(1,)](x, S=128, num_warps=4)
    assert found[1].metadata.shared > 48 * 1024
    return found


def launch(kernel, *grid, warps=4, shared=0):
    constants = (1.5, 64) if kernel.name == "_fill" else (128,)
    kernel.run.launch(
        *grid, 0, kernel.function, False, False, None, None, (warps, 1, shared), None, None, None,
        torch.zeros(128, 128), *constants,
    )  # fmt: skip


def test_takes_what_the_driver_takes(kernels, standin):
    fill, product = kernels
    registers = standin.last()[0].registers
    assert 64 < registers < 256
    launch(fill, 2**31 - 1, 1, 1)
    launch(fill, 1, 65535, 32767)
    launch(fill, 1, 1, 1, warps=32, shared=48 * 1024)
    launch(product, 1, 1, 1, warps=65536 // (32 * -(-registers // 8) * 8), shared=227 * 1024)
    assert standin.last()[0].shared == 227 * 1024


@pytest.mark.parametrize(
    ("index", "grid", "options"),
    [
        (0, (1, 65536, 1), {}),
        (0, (1, 1, 65536), {}),
        (0, (1, 1, 1), {"warps": 33}),
        (0, (1, 1, 1), {"shared": 48 * 1024 + 1}),  # more than was asked for
        (1, (1, 1, 1), {"shared": 227 * 1024 + 1}),  # more than there is
    ],
)
def test_refuses_what_the_driver_refuses(kernels, standin, index, grid, options):
    before = standin.count
    with pytest.raises(RuntimeError, match=r"Triton Error \[CUDA\]: invalid argument"):
        launch(kernels[index], *grid, **options)
    assert standin.count == before


def test_refuses_more_registers_than_there_are(kernels):
    with pytest.raises(RuntimeError, match="too many resources requested for launch"):
        launch(kernels[1], 1, 1, 1, warps=32)


def test_tells_a_launch_that_triton_leaves_out(kernels):
    with pytest.raises(OverflowError, match=r"fill was not launched: its grid is \(65537, 65535, 1\)"):
        launch(kernels[0], 65537, 65535, 1)


# Of kernels/launch.py.


def test_launches_as_triton_does(standin, monkeypatch):
    ours, rng = launched()(_mixed), random.Random(0)
    arguments = [torch.zeros(64, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    monkeypatch.setattr(triton.runtime.driver.active, "get_current_stream", lambda device: 7)
    hits = 0
    for _ in range(200):
        table = rows_of(rng.choice(arguments).reshape(1, *rng.choice([(16, 4), (8, 8)])))
        skip = Skip(arguments[0], tl.constexpr(rng.choice([0, 2])))
        call = (table, skip, arguments[0][rng.choice([0, 1]) :], rng.choice([1, 7, 32]), rng.random())
        grid = rng.choice([(3,), (5, 2), (1, 2, 3)])
        constants = {"BLOCK": 32, "TWICE": rng.choice([True, False]), "num_warps": 1}
        known = len(ours._launches)
        ours[grid](*call, **constants)
        hits += len(ours._launches) == known
        _mixed[grid](*call, **constants)
        mine, tritons = standin.last(2)
        assert what(mine) == what(tritons)
        assert mine.stream == 7
    assert hits > 60
    assert len(ours._launches) > 10


def test_one_kernel_for_all_sizes(standin):
    ours, functions = launched("rows", "count")(_mixed), set()
    for rows, count in ((48, 16), (47, 5), (1, 1), (16, 7)):
        mixed(ours, rows=rows, count=count)
        mixed(ours, rows=rows, count=count)
        once, again = standin.last(2)
        assert what(once)[:5] == what(again)[:5]
        functions.add(once.function)
        at = bytes(once.parameters)
        assert rows.to_bytes(4, "little") in at
        assert at[40:44] == count.to_bytes(4, "little")
    assert len(functions) == 1
    mixed(_mixed, rows=48)
    mixed(_mixed, rows=47)
    assert len({launch.function for launch in standin.last(2)}) == 2  # Triton's


def test_a_device_has_its_own(standin):
    ours = launched()(_mixed)
    mixed(ours)
    standin.install(80)
    mixed(ours)
    standin.install(90)
    mixed(ours)
    first, second, third = (launch.function for launch in standin.last(3))
    assert first == third != second


def test_profilers_see_launches(standin):
    ours, seen = launched()(_mixed), []
    mixed(ours)

    def enter(metadata):
        seen.append(metadata.get()["name"])

    knobs.runtime.launch_enter_hook.add(enter)
    mixed(ours)
    knobs.runtime.launch_enter_hook.remove(enter)
    mixed(ours)
    assert seen == ["_mixed"]


def test_settings_of_triton_hold(monkeypatch):
    ours = launched()(_mixed)
    plain = mixed(ours)
    monkeypatch.setattr(knobs.runtime, "debug", True)
    assert mixed(ours).metadata.debug
    monkeypatch.undo()
    assert mixed(ours) is plain
    assert mixed(ours, num_warps=8).metadata.num_warps == 8


def test_a_patched_triton_sees_launches(monkeypatch):
    ours, seen = launched()(_mixed), []
    mixed(ours)
    monkeypatch.setattr(JITFunction, "run", lambda self, *arguments, **options: seen.append((self, options["grid"])))
    mixed(ours, grid=(9,))
    assert seen == [(_mixed, (9,))]


def test_a_changed_global_is_an_error(monkeypatch):
    ours = launched()(_mixed)
    mixed(ours)
    monkeypatch.setitem(globals(), "FACTOR", tl.constexpr(3.0))
    with pytest.raises(RuntimeError, match="Global variable FACTOR has changed"):
        mixed(ours)


def test_keys_are_not_kept_without_end(standin):
    ours = launched("rows")(_mixed)
    for rows in range(1100):
        mixed(ours, rows=rows)
    assert len(ours._launches) <= 1024
    assert len({launch.function for launch in standin.last(1100)}) == 1


def test_another_architecture_launches_the_same(standin):
    """As many as test_launches.py holds for sm_90."""
    step = dict(cases())["SimCLR N=65536 topk_mean bfloat16"]()
    standin.install(80)
    found = counted(standin, step)
    assert (found["triton"], found["torch"]) == (736, 11)

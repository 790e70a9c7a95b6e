import contextlib

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from amcl_fast.kernels import select, tuning
from amcl_fast.kernels.select.ranks import ordered
from tests.helpers.contrast import pairs
from tests.helpers.kernels.compare import DEVICE

pytestmark = pytest.mark.slow


def expected(s, skip, top_k):
    """Columns, rising, of a stable sort by falling similarity: NaN first, skipped columns nowhere; s is (C, A, B)."""
    s = s.double().nan_to_num(nan=1e300, posinf=1e200, neginf=-1e200)
    if skip is not None:
        s = s.scatter(-1, skip.expand(s.shape[0], -1, -1), float("-inf"))
    columns = s.argsort(dim=-1, descending=True, stable=True)
    return columns[..., :top_k].sort(dim=-1)[0]


def unit(generator, *shape):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def check(anchors, candidates, skip, top_k):
    on_device = (anchors.to(DEVICE), candidates.to(DEVICE), None if skip is None else skip.to(DEVICE))
    values, columns = (t.cpu() for t in select.hardest(*on_device, top_k))
    s = anchors.double() @ candidates.double().mT
    columns, order = columns.long().sort(dim=-1)
    assert torch.equal(columns, expected(s, skip, top_k))
    torch.testing.assert_close(
        values.gather(-1, order).double(), s.gather(-1, columns), rtol=0, atol=1e-6, equal_nan=True
    )


@pytest.mark.parametrize(
    ("heads", "rows", "columns", "d", "top_k"),
    [
        (2, 30, 70, 32, 10),
        (1, 5, 300, 48, 1),
        (1, 9, 200, 16, 100),
        (1, 3, 33, 130, 33),
        (1, 20, 700, 20, 3),
        (3, 1, 5, 16, 2),
        (1, 2, 1300, 16, 1100),
        (1, 1, 4500, 16, 5),
    ],
)
def test_random(heads, rows, columns, d, top_k):
    generator = torch.Generator().manual_seed(rows)
    check(unit(generator, heads, rows, d), unit(generator, heads, columns, d), None, top_k)


def test_own_rows_are_skipped():
    z = unit(torch.Generator().manual_seed(0), 2, 40, 32)
    check(z, z, pairs(40), 7)
    check(z, z, pairs(40), 37)


def test_many_skipped_columns():
    generator = torch.Generator().manual_seed(0)
    skip = torch.stack([torch.randperm(150, generator=generator)[:40] for _ in range(9)])
    check(unit(generator, 1, 9, 16), unit(generator, 1, 150, 16), skip, 20)


@pytest.mark.parametrize("top_k", [1, 5, 40])
def test_ties_take_the_lowest_columns(top_k):
    generator = torch.Generator().manual_seed(1)
    # Small integers: equal similarities are equal in every precision.
    anchors = torch.randint(-1, 2, (1, 10, 16), generator=generator).float()
    check(anchors, torch.randint(-1, 2, (1, 300, 16), generator=generator).float(), None, top_k)


def test_all_equal():
    check(torch.ones(1, 3, 16), torch.ones(1, 200, 16), torch.arange(3)[:, None], 20)


def test_a_period_of_the_candidates():
    """Every 64th column is the best: the groups are not the columns of a period."""
    generator = torch.Generator().manual_seed(2)
    candidates = 0.1 * unit(generator, 1, 64 * 40, 16)
    anchors = unit(generator, 1, 4, 16)
    candidates[:, ::64] = anchors[:, :1] + 0.1 * candidates[:, ::64]
    check(anchors[:, :1], candidates, None, 35)


def test_anchors_in_turns(monkeypatch):
    monkeypatch.setattr(select, "WORKSPACE", 1)
    z = unit(torch.Generator().manual_seed(4), 2, 70, 16)
    check(z, z, pairs(70), 5)


def test_negative_similarities():
    generator = torch.Generator().manual_seed(5)
    candidates = unit(generator, 1, 130, 16).abs()
    check(-unit(generator, 1, 6, 16).abs(), candidates, None, 12)


def test_transposed_queue():
    generator = torch.Generator().manual_seed(6)
    queue = unit(generator, 2, 150, 24).mT.contiguous()
    check(unit(generator, 2, 6, 24), queue.mT, None, 12)


@pytest.mark.parametrize("nan", [0x7FC00000, -0x400000])
def test_nan_is_seen(nan):
    candidates = unit(torch.Generator().manual_seed(7), 1, 150, 16)
    candidates[0, 77] = torch.tensor(nan, dtype=torch.int32).view(torch.float32)
    assert candidates[0, 77].isnan().all()
    check(candidates[:, 76:78], candidates, None, 5)


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU's products have the zeros they have")
def test_products_that_are_minus_zero(monkeypatch):
    """As a sum of products alone could be, which begins without a zero of its own."""
    original = interpreter.InterpreterBuilder.create_dot

    def product(builder, *operands):
        result = original(builder, *operands)
        result.data[result.data == 0] = -0.0
        return result

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", product)
    generator = torch.Generator().manual_seed(8)
    anchors = unit(generator, 1, 6, 16).half()
    anchors[:, ::2] = 0
    check(anchors, -unit(generator, 1, 300, 16).abs().half(), None, 20)


LARGEST = torch.finfo(torch.float32).max
# Row by row: what similarities may be like. One coordinate counts, so that they are what is written here.
ROWS = {
    "equal": lambda u, i: torch.full_like(u, 0.25),
    "two values": lambda u, i: (u > 0.7).float(),
    "few values": lambda u, i: (8 * u).floor(),
    "equal but for thirty": lambda u, i: torch.where(i % 20 == 7, 2 + u, torch.ones_like(u)),
    "rising": lambda u, i: i / 64.0,
    "falling": lambda u, i: -i / 64.0,
    "neighbouring floats": lambda u, i: 1 + (4 * u).floor() * 2**-23,
    "zeros of both signs": lambda u, i: torch.where(u > 0.5, torch.zeros_like(u), -torch.zeros_like(u)),
    "denormal": lambda u, i: (u - 0.5) * 1e-39,
    "NaN": lambda u, i: torch.full_like(u, torch.nan),
    "much NaN": lambda u, i: torch.where(u > 0.7, torch.nan, torch.where(u > 0.5, torch.inf, u)),
    "some NaN": lambda u, i: torch.where(i % 97 == 5, torch.nan, u),
    "infinite": lambda u, i: torch.where(u > 0.6, torch.inf, -torch.inf),
    "hardly more than −∞": lambda u, i: torch.where(i % 50 == 3, u, -torch.inf),
    "largest": lambda u, i: torch.where(u > 0.9, LARGEST, -LARGEST),
    "in few groups, rising": lambda u, i: torch.where(group(i, 512) < 19, 2 + i / 4096.0, u),
    "in few groups, few values": lambda u, i: torch.where(group(i, 512) < 19, 2 + (4 * u).floor(), u),
}


def group(column, groups, tile=64):
    """The group of a column, written anew."""
    member, place = column // groups, column % groups
    tiles = groups // tile
    turn = member + member // tiles + member // tiles**2
    return (place // tile - turn) % tiles * tile + place % tile


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("top_k", [1, 90])
def test_similarities_of_every_kind(monkeypatch, top_k):
    columns = 400
    # As for many anchors.
    monkeypatch.setattr(select, "_groups", lambda *_: 128)
    u = torch.rand(len(ROWS), columns, generator=torch.Generator().manual_seed(top_k))
    column = torch.arange(columns)
    candidates = torch.zeros(len(ROWS), columns, 16)
    for head, make in enumerate(ROWS.values()):
        candidates[head, :, 0] = make(u[head], column)
    anchors = torch.zeros(len(ROWS), 1, 16)
    anchors[..., 0] = 1
    check(anchors, candidates, torch.tensor([[columns - 1, 3, 64]]), top_k)


def test_crowded_rows_are_crowded(monkeypatch):
    """The two kinds of rows above that mean to exceed their lists do."""
    monkeypatch.setattr(select, "_groups", lambda *_: 512)
    listed = []
    run = select._select_crowded

    class Watched:
        def __getitem__(self, grid):
            def launch(part, table, words, counts, *rest, **settings):
                listed.append(counts.view(-1, 2)[:3, 1].clone())
                run[grid](part, table, words, counts, *rest, **settings)
                listed.append(counts.view(-1, 2)[:3, 1].clone())

            return launch

    monkeypatch.setattr(select, "_select_crowded", Watched())
    u, column = torch.rand(2000, generator=torch.Generator().manual_seed(0)), torch.arange(2000)
    kinds = [ROWS[name](u, column) for name in ("in few groups, rising", "in few groups, few values", "rising")]
    candidates = torch.zeros(len(kinds), 2000, 16)
    candidates[..., 0] = torch.stack(kinds)
    anchors = torch.zeros(len(kinds), 1, 16)
    anchors[..., 0] = 1
    check(anchors, candidates, None, 20)
    before, after = listed
    assert (before > 64).tolist() == [True, True, False]
    assert (after <= 64).all()


def work(memcheck, monkeypatch, anchors, candidates, skip, top_k):
    """Elements read and written, and similarities formed by matrix products."""
    formed = 0
    dot = interpreter.InterpreterBuilder.create_dot

    def counted(this, a, b, d, *rest):
        nonlocal formed
        formed += a.data.shape[0] * b.data.shape[1]
        return dot(this, a, b, d, *rest)

    before = memcheck.accesses
    with monkeypatch.context() as patch:
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", counted)
        check(anchors, candidates, skip, top_k)
    return memcheck.accesses - before, formed


@pytest.mark.skipif(DEVICE == "cuda", reason="the interpreter counts")
def test_equal_similarities_cost_no_more(memcheck, monkeypatch):
    generator = torch.Generator().manual_seed(12)
    rows, columns, top_k = 8, 1100, 20
    monkeypatch.setattr(select, "_groups", lambda *_: 128)
    # Sixteenths, whose products and sums are exact: the order of equal ones is the same in float64.
    anchors, keys = ((16 * unit(generator, 1, size, 16)).round() / 16 for size in (rows, columns))
    ordinary = work(memcheck, monkeypatch, anchors, keys, pairs(rows), top_k)
    blank = keys[:, :1].expand(1, columns, 16)
    half = torch.where(torch.rand(1, columns, 1, generator=generator) < 0.5, keys, blank)
    # All equal, and as many as can be above them without being the κ themselves.
    most = blank.clone()
    most[:, torch.randperm(columns, generator=generator)[: top_k - 1]] = anchors[:, :1]
    cases = {
        "all rows equal": (blank[:, :rows], blank),
        "a queue of equal keys": (anchors, blank),
        "half of them equal": (anchors, half),
        "all but κ − 1 equal": (anchors[:, :1].expand(1, rows, 16), most),
        "NaN": (anchors * torch.nan, keys),
    }
    for name, case in cases.items():
        for found, usual in zip(work(memcheck, monkeypatch, *case, pairs(rows), top_k), ordinary, strict=True):
            assert found <= (3 if name == "NaN" else 1.5) * usual, name


def test_most_columns_skipped(monkeypatch):
    """Skip lists longer than a tile, and what is left in fewer than κ groups."""
    monkeypatch.setattr(select, "_groups", lambda *_: 64)
    generator = torch.Generator().manual_seed(13)
    anchors, candidates = unit(generator, 1, 2, 16), unit(generator, 1, 150, 16)
    left = torch.arange(150) % 64 < 8
    skip = torch.arange(150)[~left].expand(2, -1)
    assert left.sum() > 20 > 8 and skip.shape[1] > 64
    check(anchors, candidates, skip, 20)


def test_lists_in_several_blocks(monkeypatch):
    """As of κ in the thousands: no block holds a row."""
    monkeypatch.setattr(select, "_groups", lambda *_: 128)
    u, column = torch.rand(1000, generator=torch.Generator().manual_seed(15)), torch.arange(1000)
    crowded = torch.where(group(column, 128) < 38, 2 + (32 * u).floor(), u)
    candidates = torch.zeros(3, 1000, 16)
    candidates[..., 0] = torch.stack([crowded, ROWS["few values"](u, column), u])
    anchors = torch.zeros(3, 1, 16)
    anchors[..., 0] = 1
    with contextlib.ExitStack() as stack:
        for table in ("bounds", "lists", "crowded", "pick"):
            stack.enter_context(tuning.trying(f"select.{table}", {"BLOCK": 32}))
        check(anchors, candidates, None, 40)


def test_any_strides():
    generator = torch.Generator().manual_seed(14)
    anchors = unit(generator, 9, 2, 48)[:, :, ::2].transpose(0, 1)
    candidates = unit(generator, 24, 300).T.expand(2, 300, 24)[:, 1::2]
    check(anchors, candidates, pairs(18)[::2], 12)


@triton.jit
def _keys(values, keys, N: tl.constexpr):
    lanes = tl.arange(0, N)
    tl.store(keys + lanes, ordered(tl.load(values + lanes)).to(tl.int64))


def test_keys_are_in_the_order_of_the_floats():
    """NaN of either sign, as the sum of +∞ and −∞ is on some processors, above all; −0 with 0."""
    nan = torch.tensor([0x7FC00000, -0x400000], dtype=torch.int32).view(torch.float32)
    assert nan.isnan().all() and nan.signbit().tolist() == [False, True]
    values = torch.tensor([-torch.inf, -3.0, -1e-40, -0.0, 0.0, 2.0, 3e38, torch.inf])
    values = torch.cat([values, nan, values[:6]]).to(DEVICE)
    keys = torch.empty(16, dtype=torch.int64, device=DEVICE)
    _keys[(1,)](values, keys, 16)
    assert (keys[:10].diff() >= 0).all() and keys[3] == keys[4] and keys[8] == keys[9] > keys[7]


def test_half_precision_tiles():
    z = unit(torch.Generator().manual_seed(8), 1, 40, 96).half()
    check(z, z, pairs(40), 9)

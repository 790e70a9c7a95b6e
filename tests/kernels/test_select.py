import pytest
import torch
import triton
import triton.language as tl
from amcl_fast.kernels import select
from compare import DEVICE


def expected(anchors, candidates, skip, top_k):
    s = anchors.double() @ candidates.double().mT
    if skip is not None:
        s = s.scatter(-1, skip.expand(s.shape[0], -1, -1), float("-inf"))
    values, columns = s.sort(dim=-1, descending=True, stable=True)
    return values[..., :top_k], columns[..., :top_k]


def unit(generator, *shape):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def pairs(rows):
    own = torch.arange(rows)
    return torch.stack([own, (own + rows // 2) % rows], dim=1)


def check(anchors, candidates, skip, top_k):
    values, columns = (
        t.cpu()
        for t in select.hardest(
            anchors.to(DEVICE), candidates.to(DEVICE), None if skip is None else skip.to(DEVICE), top_k
        )
    )
    best, where = expected(anchors, candidates, skip, top_k)
    if top_k > select.MAX_RANKED:
        where, order = where.sort(dim=-1)
        best = best.gather(-1, order)
    torch.testing.assert_close(values.double(), best, rtol=0, atol=1e-6)
    assert torch.equal(columns.long(), where)


@pytest.mark.parametrize(
    ("heads", "rows", "columns", "d", "top_k"),
    [(2, 30, 70, 32, 10), (1, 5, 300, 48, 1), (1, 9, 200, 16, 100), (1, 3, 33, 130, 33), (1, 20, 700, 20, 3)],
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


def test_best_ones_in_one_group():
    # Every 64th column is the best: group maxima say nothing about the rest of their group.
    generator = torch.Generator().manual_seed(2)
    candidates = 0.1 * unit(generator, 1, 64 * 40, 16)
    candidates[:, ::64] *= 10
    anchors = unit(generator, 1, 4, 16)
    candidates[:, ::64] = anchors[:, :1] + 0.01 * candidates[:, ::64]
    check(anchors[:, :1], candidates, None, 35)


def test_too_many_to_rank(monkeypatch):
    monkeypatch.setattr(select, "MAX_RANKED", 4)
    z = unit(torch.Generator().manual_seed(3), 1, 40, 16)
    check(z, z, pairs(40), 9)


def test_anchors_in_turns(monkeypatch):
    monkeypatch.setattr(select, "WORKSPACE", 0)
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


def test_nan_is_seen():
    candidates = unit(torch.Generator().manual_seed(7), 1, 150, 16)
    candidates[0, 77] = torch.nan
    values, columns = select.hardest(candidates[:, :2].to(DEVICE), candidates.to(DEVICE), None, 5)
    assert values.isnan().any(-1).all()
    assert (columns == 77).any(-1).all()


@triton.jit
def _keys(values, keys, N: tl.constexpr):
    lanes = tl.arange(0, N)
    tl.store(keys + lanes, select._ordered(tl.load(values + lanes)).to(tl.int64))


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


def test_ordinary_rows_need_no_counting(monkeypatch):
    class Idle:
        def __getitem__(self, grid):
            return lambda *arguments, **settings: None

    monkeypatch.setattr(select, "_exact", Idle())
    z = unit(torch.Generator().manual_seed(9), 1, 40, 32)
    check(z, z, pairs(40), 12)
    generator = torch.Generator().manual_seed(10)
    check(unit(generator, 1, 5, 16), unit(generator, 1, 700, 16), None, 20)

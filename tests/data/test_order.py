"""amcl_fast.data.loader.order: every image once an epoch, and with a pool read in pieces that lie together."""

import numpy as np
import pytest

from amcl_fast.data.loader.order import BLOCK, Order


def epoch(order, number):
    return np.concatenate([order.places(number * order.batches + batch) for batch in range(order.batches)])


@pytest.mark.parametrize("pool", [None, 1, 64, 500, 10_000])
@pytest.mark.parametrize(("count", "shares"), [(4000, 1), (4000, 3), (4033, 4), (70, 2)])
def test_processes_share_every_epoch(count, shares, pool):
    orders = [Order(count, 16, seed=5, share=share, shares=shares, pool=pool) for share in range(shares)]
    seen = []
    for number in (0, 1, 0):
        parts = [epoch(order, number) for order in orders]
        places = np.concatenate(parts)
        assert {len(part) for part in parts} == {count // shares // 16 * 16}
        assert len(np.unique(places)) == len(places)
        assert places.min() >= 0 and places.max() < count
        seen.append(places)
    assert np.array_equal(seen[0], seen[2]) and not np.array_equal(seen[0], seen[1])
    other = Order(count, 16, seed=6, shares=shares, pool=pool)
    assert not np.array_equal(epoch(other, 0), seen[0][: len(epoch(other, 0))])


def test_the_order_is_that_of_before():
    order = Order(30, 8, seed=0)
    keys = np.random.PCG64(np.random.SeedSequence((0, 1))).random_raw(30)
    assert np.array_equal(epoch(order, 1), np.argsort(keys, kind="stable")[:24])


@pytest.mark.parametrize("shares", [1, 2])
def test_a_pool_is_read_in_blocks(shares):
    order = Order(50_000, 100, share=shares - 1, shares=shares, pool=1000)
    assert order.ahead == 10
    assert [order.begin_of_pool(batch) for batch in (0, 9, 10, order.batches, order.batches + 12)] == [
        0, 0, 10, order.batches, order.batches + 10,
    ]  # fmt: skip
    for pool in range(order.batches // 10):
        lying = order.lying(10 * pool, 10 * pool + 10)
        used = np.concatenate([order.places(batch) for batch in range(10 * pool, 10 * pool + 10)])
        assert np.array_equal(np.sort(lying), np.sort(used))
        # 1000 images are 16 blocks, and two parts of blocks at the ends.
        assert (np.diff(lying) != 1).sum() <= 1000 // BLOCK + 3
        assert (np.diff(used) == 1).sum() < 20
    assert len(order.lying(order.batches - 1, order.batches + 1)) == 200


def test_a_pool_larger_than_an_epoch_is_all_of_it(monkeypatch):
    """As few images as 512 processes have each: what is read goes no more than an epoch ahead."""
    made = []
    monkeypatch.setattr(
        Order, "_pooled", lambda self, epoch, pooled=Order._pooled: made.append(epoch) or pooled(self, epoch)
    )
    order = Order(4000, 8, share=3, shares=16, pool=16_384)
    assert order.ahead == order.batches == 31
    expected = 0
    for batch in range(70):
        order.places(batch)
        order.lying(expected, batch + order.ahead)
        expected = batch + order.ahead
    assert made == [0, 1, 2, 3]
    assert np.array_equal(np.sort(order.lying(0, 31)), np.sort(epoch(order, 0)))


def test_a_pool_mixes_as_far_as_it_reaches():
    order = Order(64_000, 64, pool=64 * 64)
    first, second = epoch(order, 0), epoch(order, 1)
    place = np.empty(64_000, int)
    place[first] = np.arange(64_000)
    # Where an image comes in the next epoch has nothing to do with where it came.
    assert abs(np.corrcoef(place[second], np.arange(64_000))[0, 1]) < 0.1
    # Of a block of 64 images hardly two meet in a batch: it is one of the 64 blocks of the pool.
    met = [64 - len(np.unique(first[at : at + 64] // BLOCK)) for at in range(0, 64_000, 64)]
    assert np.mean(met) < 64 * 0.45

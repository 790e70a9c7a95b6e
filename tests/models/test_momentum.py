import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from amcl_fast.models import KeyQueue, MomentumEncoder


def keys(n, seed=0):
    return F.normalize(torch.randn(2, n, 3, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_copies_start_equal_and_apart():
    sources = nn.Linear(3, 4), nn.BatchNorm1d(4)
    encoder = MomentumEncoder(*sources, momentum=0.9)
    x = torch.randn(5, 3)
    torch.testing.assert_close(encoder(x), copy.deepcopy(sources[1])(sources[0](x)))
    assert not any(p.requires_grad for p in encoder.parameters()) and sources[0].weight.requires_grad
    with torch.no_grad():
        sources[0].weight.zero_()
    assert encoder.copies[0].weight.abs().sum() > 0


def test_update_averages_weights_and_leaves_statistics():
    sources = nn.Linear(3, 4), nn.BatchNorm1d(4)
    encoder = MomentumEncoder(*sources, momentum=0.9)
    old = [p.clone() for p in encoder.parameters()]
    with torch.no_grad():
        for source in sources:
            for p in source.parameters():
                p.add_(1)
    sources[1].running_mean.fill_(7)
    encoder.update(*sources)
    for found, before in zip(encoder.parameters(), old, strict=True):
        torch.testing.assert_close(found, before + 0.1)
    assert (encoder.copies[1].running_mean == 0).all()


@pytest.mark.parametrize("momentum", [-0.1, 1.1])
def test_bad_momentum_is_named(momentum):
    with pytest.raises(ValueError, match=rf"momentum.*got {momentum}"):
        MomentumEncoder(nn.Linear(1, 1), momentum=momentum)


@pytest.mark.parametrize("sizes", [[3, 3, 3], [7], [1, 7, 2], [5, 6]])
def test_the_oldest_keys_are_replaced(sizes):
    """Against a list: the last K of all keys ever, wherever the ring begins."""
    queue = KeyQueue(2, 7, 3)
    memory = queue.keys.data_ptr()
    expected = list(queue.keys.unbind(1))
    for seed, n in enumerate(sizes):
        queue.enqueue(keys(n, seed))
        expected = (expected + list(keys(n, seed).unbind(1)))[-7:]
    start = queue.written % 7
    torch.testing.assert_close(queue.keys.roll(-start, dims=1), torch.stack(expected, dim=1))
    assert queue.written == sum(sizes) and queue.keys.data_ptr() == memory


def test_it_starts_with_the_same_unit_vectors_everywhere():
    queues = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        queues.append(KeyQueue(2, 7, 3).keys)
    assert torch.equal(*queues)
    torch.testing.assert_close(queues[0].norm(dim=-1), torch.ones(2, 7))


def test_the_state_dict_holds_keys_and_place(tmp_path):
    queue, other = KeyQueue(2, 7, 3), KeyQueue(2, 7, 3)
    queue.enqueue(keys(5))
    torch.save(queue.state_dict(), tmp_path / "queue.pt")
    other.load_state_dict(torch.load(tmp_path / "queue.pt", weights_only=True))
    for each in (queue, other):
        each.enqueue(keys(4, seed=1))
    assert torch.equal(queue.keys, other.keys) and other.written == 9


def test_more_keys_than_places_are_refused():
    with pytest.raises(ValueError, match=r"queue_size.*8 keys.*got 7"):
        KeyQueue(2, 7, 3).enqueue(keys(8))
    with pytest.raises(ValueError, match=r"queue_size.*got 0"):
        KeyQueue(2, 0, 3)

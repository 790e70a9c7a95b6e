"""amcl_fast.data.loader: what batches look like, their order, shards and seeds."""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch

from amcl_fast.data import ContrastiveLoader, EvaluationLoader
from amcl_fast.data.graph import Output
from amcl_fast.data.scan.images import Images
from tests.helpers.loaders import EVERYTHING, RAW, assert_same, epochs, in_shards, loader, numbered, numbers
from tests.helpers.small_shards import picture


def test_batches_have_the_promised_form_and_the_right_labels(tmp_path):
    batches = list(loader(numbered(tmp_path / "i", 30)))
    assert len(batches) == 3
    for batch in batches:
        views, labels = batch
        assert isinstance(views, tuple)
        assert len(views) == 2
        for view in views:
            assert view.shape == (8, 3, 8, 8)
            assert view.dtype == torch.float32
            assert view.is_contiguous(memory_format=torch.channels_last)
        assert labels.dtype == torch.int64
        assert labels.tolist() == [number % 4 for number in numbers(batch)]


def test_views_of_an_image_differ(save):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    images = Images([save(f"{n}.png", noise) for n in range(8)], [0] * 8, ["a"])
    ((first, second), _), *_ = loader(images, EVERYTHING)
    assert (first - second).abs().mean((1, 2, 3)).min() > 0


def test_every_epoch_is_another_order_of_all_images_without_the_remainder(tmp_path):
    data = loader(numbered(tmp_path / "i", 30))
    orders = [[number for batch in data for number in numbers(batch)] for _ in range(4)]
    for order in orders:
        assert len(set(order)) == len(order) == 24
    assert len({tuple(order) for order in orders}) == 4
    # The dropped six are others each time.
    assert len(set(orders[0]) | set(orders[1])) > 24


@pytest.mark.parametrize("count", [48, 50])
def test_shards_are_disjoint_and_cover_an_epoch(tmp_path, count):
    images = numbered(tmp_path / "i", count)
    shards = [loader(images, batch_size=4, shard=shard, num_shards=3) for shard in range(3)]
    assert [len(shard) for shard in shards] == [4, 4, 4]
    seen = []
    for _ in range(3):
        parts = [[number for batch in shard for number in numbers(batch)] for shard in shards]
        epoch = sorted(number for part in parts for number in part)
        assert len(set(epoch)) == 48
        seen.append(parts)
    assert seen[0] != seen[1] != seen[2]


def test_shards_draw_their_own_augmentations(save):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    images = Images([save(f"{n}.png", noise) for n in range(16)], [0] * 16, ["a"])
    first, second = (next(iter(loader(images, EVERYTHING, shard=s, num_shards=2)))[0][0] for s in range(2))
    assert not torch.equal(first, second)


def test_seeds_repeat_and_differ_whatever_the_number_of_threads(tmp_path):
    images = numbered(tmp_path / "i", 30)
    runs = [
        epochs(loader(images, EVERYTHING, threads=threads, seed=seed), 2) for threads, seed in ((1, 3), (3, 3), (2, 4))
    ]
    assert_same(runs[0], runs[1])
    assert not torch.equal(runs[0][0][0][0], runs[2][0][0][0])
    assert not torch.equal(runs[0][0][1], runs[2][0][1])


def test_a_batch_stays_valid_as_long_as_it_is_held(tmp_path):
    data = loader(numbered(tmp_path / "i", 64), EVERYTHING)
    held, copied = [], []
    for _ in range(3):
        for views, _ in data:
            held.extend(views)
            copied.extend(view.clone() for view in views)
    assert len({view.data_ptr() for view in held}) == len(held)
    del data, views
    gc.collect()
    assert all(torch.equal(a, b) for a, b in zip(held, copied, strict=True))


def test_views_are_not_copied(tmp_path, monkeypatch):
    data = loader(numbered(tmp_path / "i", 16))
    addresses = []
    from_dlpack = torch.from_dlpack

    def spy(tensor):
        addresses.append(tensor.data_ptr())
        return from_dlpack(tensor)

    monkeypatch.setattr(torch, "from_dlpack", spy)
    views, _ = next(iter(data))
    assert [view.data_ptr() for view in views] == addresses[:2]


def test_shards_give_the_batches_of_files(make_shards, tmp_path):
    _, images = in_shards(make_shards)
    files = []
    for number in range(30):
        files.append(str(tmp_path / f"{number:04}.png"))
        Path(files[-1]).write_bytes(picture(number))
    ours, theirs = (epochs(loader(some, EVERYTHING), 2) for some in (images, Images(files, images.labels, ["0"])))
    assert_same(ours, theirs)
    assert [
        number for batch in EvaluationLoader(images, Output(size=8, batch_size=8, **RAW)) for number in batch[1]
    ] == [number % 4 for number in range(30)]


def test_waiting_is_counted(tmp_path):
    data = loader(numbered(tmp_path / "i", 16))
    assert data.wait_seconds == 0
    next(iter(data))
    first = data.wait_seconds
    assert first > 0
    next(iter(data))
    assert data.wait_seconds > first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 31}, "images must be at least 31 for 1 process.* with batches of 31, got 30"),
        ({"num_shards": 4}, "images must be at least 32 for 4 process.* with batches of 8, got 30"),
        ({"shard": 2, "num_shards": 2}, "shard must be at least 0 and below num_shards=2, got 2"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        loader(numbered(tmp_path / "i", 30), **options)


def test_no_view_is_refused(tmp_path):
    with pytest.raises(ValueError, match="views must have at least one, got none"):
        ContrastiveLoader(numbered(tmp_path / "i", 8), [], Output(size=8, batch_size=4))

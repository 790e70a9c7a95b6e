"""The images on which a run is measured: samples, parts for several processes, a linear probe's."""

import re

import pytest
import torch
from PIL import Image

from tests.helpers.loaders import pixels_and_labels, prepared


def test_a_linear_probe_sees_every_labelled_image_once_an_epoch_and_anew(make_folder):
    root = make_folder("set/train", per_class=4).parent
    make_folder("set/test", per_class=2)
    make_folder("set/unlabeled", per_class=2, classes=("x",))
    (root / "train" / "ant" / "bad.png").write_text("text")
    data = prepared(root, batch_size=5)
    loader = data.linear_probe_loader()
    first, second = ([(images, labels) for images, labels in loader] for _ in range(2))
    assert [len(labels) for _, labels in first] == [5, 5] and len(loader) == 2
    assert all(images.shape == (5, 3, 8, 8) and (labels >= 0).all() for images, labels in first)
    assert not torch.equal(first[0][0], second[0][0])
    few = prepared(root, batch_size=64).linear_probe_loader()
    (_, labels), *_ = few
    assert labels.sort().values.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_another_data_set_gives_what_images_without_classes_are_measured_with(make_folder, tmp_path):
    root = make_folder("flat", per_class=5, classes=("",))
    other = make_folder("other/train", per_class=4, classes=("ant", "bee")).parent
    make_folder("other/val", per_class=2, classes=("ant", "bee"))
    data, alone = prepared(root, evaluation=str(other), limit=4), prepared(other)
    assert (data.unmeasurable, data.classes, data.num_train) == (None, ["ant", "bee"], 4)
    assert data.measured_images() == (8, 4)
    for ours, theirs in zip(data.features_loaders(), alone.features_loaders(), strict=True):
        assert all(map(torch.equal, pixels_and_labels(ours), pixels_and_labels(theirs)))
    assert [len(labels) for _, labels in data.linear_probe_loader()] == [4, 4]
    assert pixels_and_labels(data.held_out_sample(1, 9))[1].tolist() == [0, 0]
    ((_, labels), *_) = data.train_dataloader()
    assert labels.tolist() == [-1] * 4


def test_beside_another_data_set_nothing_is_held_out_of_what_is_trained_on(make_folder):
    root, other = make_folder("set", per_class=10), make_folder("other", per_class=10, classes=("x", "y"))
    assert (prepared(root).num_train, prepared(root, evaluation=str(other)).num_train) == (27, 30)
    assert prepared(root, evaluation=str(other)).measured_images() == (18, 2)
    make_folder("others/only", per_class=3, classes=("x",))
    for path, why in (("others/only", "all images are of one class, 'x'"), ("nowhere", "does not exist")):
        with pytest.raises(ValueError, match=f"{path}.*{why}"):
            prepared(root, evaluation=str(root.parent / path))


def test_what_both_data_sets_leave_out_counts_once(make_folder):
    root = make_folder("set", per_class=10, classes=("x", "y"))
    (root / "x" / "none.png").touch()
    assert prepared(root, evaluation=str(root)).skipped == [(str(root / "x" / "none.png"), "empty file")]


def test_a_sample_of_held_out_images_spreads_over_the_classes(make_folder):
    root = make_folder("set/train", per_class=4, classes=tuple("abcdefg")).parent
    make_folder("set/test", per_class=5, classes=tuple("abcdefg"))
    data = prepared(root)
    labels = [pixels_and_labels(data.held_out_sample(3, 2))[1].tolist() for _ in range(2)]
    assert labels[0] == labels[1] == [0, 0, 3, 3, 6, 6]
    images, every = pixels_and_labels(data.held_out_sample(100, 100))
    assert every.tolist() == [label for label in range(7) for _ in range(5)]
    assert torch.equal(images, pixels_and_labels(data.features_loaders()[1])[0])


@pytest.mark.parametrize(
    ("folders", "limit", "reason"),
    [
        ({"": 4}, None, "the images have no labels"),
        ({"ant": 4}, None, "all images are of one class, 'ant'"),
        ({"ant": 1, "bee": 1, "cow": 1}, None, "no image is held out, since no class has two"),
        ({"ant": 4, "bee": 4}, 1, "all images that are trained on and have a label are of one class, '(ant|bee)'"),
        ({"train/ant": 4, "train/bee": 4, "train/cow": 4, "val/cow": 1}, 2, "no held-out image is of a class"),
        ({"ant": 2, "bee": 1}, None, None),
        ({"train/ant": 4, "train/bee": 4, "val/bee": 1}, None, None),
    ],
)
def test_what_can_be_measured_is_known_before_the_run(tmp_path, folders, limit, reason):
    for name, count in folders.items():
        (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", (4, 4)).save(tmp_path / "set" / name / f"{number}.png")
    data = prepared(tmp_path / "set", batch_size=1, limit=limit)
    assert (data.unmeasurable is None) == (reason is None)
    assert reason is None or re.match(reason, data.unmeasurable)
    if reason is None:
        bank, queries = (pixels_and_labels(loader)[1] for loader in data.features_loaders())
        assert len(queries) == 1 and set(queries.tolist()) <= set(bank.tolist())
    assert len(list(data.train_dataloader())) == data.num_train


def test_samples_are_of_all_classes_and_always_the_same(make_folder):
    root = make_folder("set/train", classes="abc", per_class=9).parent
    make_folder("set/test", classes="abc", per_class=4)
    data = prepared(root)
    assert data.measured_images() == (27, 12) and data.measured_images(10, 50) == (10, 12)
    whole = [pixels_and_labels(loader) for loader in data.features_loaders(100, 100)]
    assert [labels.bincount().tolist() for _, labels in whole] == [[9, 9, 9], [4, 4, 4]]
    bank, queries = (pixels_and_labels(loader) for loader in data.features_loaders(7, 3))
    assert sorted(bank[1].bincount().tolist()) == [2, 2, 3] and queries[1].tolist() == [0, 1, 2]
    again, other_seed = data.features_loaders(7, 3), prepared(root, seed=5).features_loaders(7, 3)
    for loaders in (again, other_seed):
        assert torch.equal(pixels_and_labels(loaders[0])[0], bank[0])
    # Of a larger sample it is a part.
    larger, _ = pixels_and_labels(data.features_loaders(14, 3)[0])
    assert all((larger == image).flatten(1).all(1).any() for image in bank[0])
    # The limit is of what is trained on, and so of the bank.
    assert prepared(root, limit=6).measured_images(50, 50) == (6, 12)


def test_a_sample_of_fewer_images_than_classes_is_not_of_the_first_ones(make_folder):
    root = make_folder("set/train", classes="abcdefghij", per_class=3).parent
    make_folder("set/test", classes="abcdefghij", per_class=2)
    data = prepared(root)
    bank, queries = (pixels_and_labels(loader)[1] for loader in data.features_loaders(14, 4))
    assert len(queries.unique()) == 4 and queries.tolist() != [0, 1, 2, 3]
    # The classes of which the bank has one more.
    twice = (bank.bincount() == 2).nonzero().flatten().tolist()
    assert bank.bincount().tolist().count(1) == 6 and twice == queries.tolist()
    few = pixels_and_labels(data.features_loaders(5, 4)[0])[1].tolist()
    assert len(few) == 5 and set(queries.tolist()) < set(few)


@pytest.mark.parametrize("num_shards", [2, 5, 11])
def test_parts_of_a_sample_in_order_are_the_sample(make_folder, num_shards):
    root = make_folder("set", per_class=6)
    data = prepared(root)
    expected = [pixels_and_labels(loader) for loader in data.features_loaders(7, 2)]
    parts = [data.features_loaders(7, 2, shard=shard, num_shards=num_shards) for shard in range(num_shards)]
    for kind, (images, labels) in enumerate(expected):
        batches = [batch for part in parts for batch in part[kind]]
        assert torch.equal(torch.cat([batch for batch, _ in batches]), images)
        assert torch.equal(torch.cat([batch for _, batch in batches]), labels)


def test_a_file_that_turned_out_to_be_bad_moves_no_other_to_another_part(make_folder):
    """Each process knows of what it has met itself."""
    root = make_folder("set", per_class=10)
    data = prepared(root)
    (first, _), (second, _) = (data.features_loaders(shard=shard, num_shards=2) for shard in range(2))
    expected = pixels_and_labels(second)[0]
    data._note_bad_file(first._files[0], "found during the run: of a test")
    (fewer, _), (second, _) = (data.features_loaders(shard=shard, num_shards=2) for shard in range(2))
    assert len(fewer._files) == len(first._files) - 1
    assert torch.equal(pixels_and_labels(second)[0], expected)


def test_the_parts_of_a_linear_probe_s_batches_are_the_images(make_folder):
    data = prepared(make_folder("set", per_class=8), batch_size=6)
    whole = torch.cat([labels for _, labels in data.linear_probe_loader()])
    parts = [torch.cat([labels for _, labels in data.linear_probe_loader(shard, 2)]) for shard in range(2)]
    assert len(parts[0]) == len(parts[1]) and len(whole) == 2 * len(parts[0])
    with pytest.raises(ValueError, match="batch_size must divide by the 4 processes, got 6"):
        data.linear_probe_loader(0, 4)
    few = prepared(make_folder("few", classes="ab", per_class=2), batch_size=6)
    with pytest.raises(ValueError, match=r"training images must be at least 3 for 3 process.*, got 2;"):
        few.linear_probe_loader(0, 3)

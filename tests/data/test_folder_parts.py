"""amcl_fast.data.sources.folder: parts of a data set by their names, and images without classes."""

import pytest

from amcl_fast.data.sources.folder import find_sources
from amcl_fast.left_out import LOOSE
from tests.helpers.folders import ANT_BEE, reasons, shown


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("train", "test"),
        ("training", "testing"),
        ("Train", "VAL"),
        ("TRAINING", "valid"),
        ("train", "Validation"),
    ],
)
def test_parts_go_by_several_names_in_any_capitals(fill, train, held_out):
    for label in ANT_BEE:
        fill(f"{train}/{label}", 2)
        root = fill(f"{held_out}/{label}")
    fill("Unlabelled/deep/down", 3)
    fill("unlabeled2017", 5)
    found = find_sources(root)
    assert (shown(found.train), shown(found.held_out)) == ({"ant": 2, "bee": 2}, {"ant": 1, "bee": 1})
    assert shown(found.unlabelled) == {None: 3}
    assert (found.no_labels, found.notes, found.train.skipped) == (None, [], [])


def test_imagenet_as_distributed_is_measured_on_val(fill):
    for label in ANT_BEE:
        fill(f"train/{label}", 2)
        fill(f"val/{label}")
    root = fill("test", 4)
    found = find_sources(root)
    assert shown(found.held_out) == {"ant": 1, "bee": 1}
    assert found.notes == [f"{root}/test is not used as the held-out part: it holds no folder of a class"]
    assert not found.held_out.skipped


def test_test_goes_before_val_where_both_are_good(fill):
    for label in ANT_BEE:
        fill(f"train/{label}")
        fill(f"val/{label}", 2)
        root = fill(f"test/{label}", 3)
    found = find_sources(root)
    assert shown(found.held_out) == {"ant": 3, "bee": 3} and not found.notes


def test_a_held_out_part_needs_usable_images_of_the_classes_of_training(fill, monkeypatch):
    for label in ANT_BEE:
        fill(f"train/{label}")
        fill(f"testing/{label}", content=b"text")
    fill("test/other")
    root = fill("val/more")
    found = find_sources(root)
    assert found.held_out is None
    assert found.notes == [
        f"{root}/test is not used as the held-out part: its folders (other) are not of the classes that are trained "
        "on (ant, bee)",
        f"{root}/testing is not used as the held-out part: it holds no usable image of the classes that are trained on",
        f"{root}/val is not used as the held-out part: its folders (more) are not of the classes that are trained on "
        "(ant, bee)",
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train", "training"), r"root must have one training part, got train and training$"),
        (("train", "Train"), r"root must have one folder 'train', whatever its capitals, got Train and train$"),
        (("train", "val", "Val"), r"root must have one folder 'val', whatever its capitals, got Val and val$"),
    ],
)
def test_parts_that_cannot_be_told_apart_are_refused(fill, names, message):
    for name in names:
        for label in ANT_BEE:
            root = fill(f"{name}/{label}")
    with pytest.raises(ValueError, match=message):
        find_sources(root)


def test_classes_in_capitals_of_their_own_are_classes(fill):
    fill("a")
    assert find_sources(fill("A")).train.classes == ["A", "a"]


def test_a_held_out_part_alone_is_trained_on(fill):
    for label in ANT_BEE:
        root = fill(f"val/{label}", 2)
    (root / "devkit").mkdir()
    (root / "devkit" / "readme.txt").write_text("about")
    found = find_sources(root)
    assert shown(found.train) == {"ant": 2, "bee": 2} and found.held_out is None
    assert found.notes == [f"{root} has no training part (train or training): {root}/val is trained on"]
    fill("test/ant")
    with pytest.raises(
        ValueError, match=r"must have a training part \(train or training\), got test and val; to train"
    ):
        find_sources(root)


def test_parts_beside_the_classes_themselves(fill):
    for label in ANT_BEE:
        fill(label, 2)
        root = fill(f"val/{label}")
    fill("unlabeled", 4)
    found = find_sources(root)
    assert [shown(part) for part in (found.train, found.held_out, found.unlabelled)] == [
        {"ant": 2, "bee": 2},
        {"ant": 1, "bee": 1},
        {None: 4},
    ]


def test_a_class_may_be_called_train(fill):
    for label in ("bus", "car", "train"):
        root = fill(label)
    found = find_sources(root)
    assert found.train.classes == ["bus", "car", "train"]
    assert found.notes == [
        f"{root}/train holds no folders, and bus, car beside it images: it is taken for a class like these"
    ]


@pytest.mark.parametrize(
    ("paths", "count", "reason"),
    [
        ([""], 3, "the images have no labels"),
        (["train"], 3, "the images have no labels"),
        (["train", "test", "annotations"], 3, "the images have no labels"),
        (["unlabeled"], 3, "the images have no labels"),
        (["unlabeled", "test/ant", "test/bee"], 3, "the images have no labels"),
        (["train", "unlabeled"], 6, "the images have no labels"),
        (["photos"], 3, "all images are of one class, 'photos'"),
        (["photos/2019/may", "photos/2020"], 6, "all images are of one class, 'photos'"),
        (["train/ant", "test/ant"], 3, "all images are of one class, 'ant'"),
        (["photos", ""], 6, "the images have no labels"),
    ],
)
def test_images_without_classes_are_trained_on_without_labels(fill, paths, count, reason):
    for path in paths:
        root = fill(path, 3, b"{}" if path == "annotations" else None)
    found = find_sources(root)
    parts = [part for part in (found.train, found.unlabelled) if part]
    assert [label for part in parts for label in part.labels] == [-1] * count
    assert (found.train.classes, found.held_out, found.no_labels) == ([], None, reason)
    assert not found.train.skipped


def test_images_beside_classes_are_listed_once_and_other_files_are_not(fill):
    for label in ANT_BEE:
        fill(f"train/{label}")
        fill(f"test/{label}")
    fill("train", 2)
    fill("test")
    root = fill("")
    (root / "readme.txt").write_text("about")
    (root / "train" / "labels.csv").write_text("0,1")
    found = find_sources(root)
    told = {**reasons(found.train, root), **reasons(found.held_out, root)}
    assert told == dict.fromkeys([" 0.png", "train/train 0.png", "train/train 1.png", "test/test 0.png"], LOOSE)
    assert shown(found.train) == {"ant": 1, "bee": 1}


def test_a_class_may_hold_a_folder_of_the_name_of_a_part(fill):
    fill("bus/train", 2)
    fill("bus/tram", 3)
    root = fill("car/val", 4)
    found = find_sources(root)
    assert shown(found.train) == {"bus": 5, "car": 4} and not found.notes

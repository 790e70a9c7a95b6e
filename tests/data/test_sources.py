"""amcl_fast.data.sources: layouts of folders as people have them."""

import os
import re

import pytest
from PIL import Image

from amcl_fast.data.left_out import LOOSE
from amcl_fast.data.sources import find_sources

ANT_BEE = ("ant", "bee")


@pytest.fixture
def fill(tmp_path):
    """Writes images below root/PATH: `fill("train/ant", 2)`; returns the root."""

    def write(path, count=1, content=None):
        folder = tmp_path / "root" / path
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            file = folder / f"{path.replace('/', ' ')} {number}.png"
            if content is None:
                Image.new("RGB", (4, 4), (number, len(path), 0)).save(file)
            else:
                file.write_bytes(content)
        return tmp_path / "root"

    return write


def shown(images):
    """Class (None without a label) to the number of images."""
    counts = {}
    for label in images.labels:
        name = images.classes[label] if label >= 0 else None
        counts[name] = counts.get(name, 0) + 1
    return counts


def reasons(images, root):
    return {os.path.relpath(path, root): reason for path, reason in images.skipped}


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


def test_a_held_out_part_that_cannot_be_read_is_told(fill, monkeypatch):
    for label in ANT_BEE:
        fill(f"train/{label}")
        root = fill(f"test/{label}")
    scandir = os.scandir

    def refuse(path):
        if str(path) == f"{root}/test":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    found = find_sources(root)
    assert found.held_out is None
    assert found.notes == [
        f"{root}/test is not used as the held-out part: the folder cannot be read: Permission denied"
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
    fill("devkit", content=b"text")
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


def test_a_class_that_vanishes_is_told(fill, monkeypatch):
    for label in ("ant", "bee", "cow", "dog"):
        root = fill(f"train/{label}", content=b"text" if label == "cow" else None)
    scandir = os.scandir

    def refuse(path):
        if str(path) == f"{root}/train/bee":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    found = find_sources(root)
    assert found.train.classes == ["ant", "dog"]
    assert reasons(found.train, root)["train/bee"] == "the folder cannot be read: Permission denied"
    assert found.notes == [
        f"not a class of {root}/train: bee (the folder cannot be read: Permission denied), "
        "cow (it holds no usable image)"
    ]


def test_links_within_the_data_set_are_told_in_one_line(fill):
    for label in ANT_BEE:
        fill(f"train/{label}", 3)
        root = fill(f"val/{label}")
        for number in range(3):
            (root / "train" / label / f"up {number}").symlink_to("..")
    (root / "train" / "ant" / "measured").symlink_to(root / "val" / "ant")
    (root / "train" / "twin").symlink_to("bee")
    (root / "test").symlink_to("train")
    found = find_sources(root)
    assert [shown(part) for part in (found.train, found.held_out)] == [{"ant": 3, "bee": 3}, {"ant": 1, "bee": 1}]
    assert len(found.train.skipped) == 8
    assert found.notes == [
        f"{root}/test is not used as the held-out part: a link to {root}/train, which is used already",
        f"not a class of {root}/train: twin (a link to {root}/train/bee, which is in the data set already)",
        f"7 link(s) to folders not followed, the first: {root}/train/ant/measured: a link to {root}/val/ant, which is "
        "in the data set already",
    ]


def test_a_subset_made_of_links_and_a_part_elsewhere(fill, tmp_path):
    for label in ("ant", "bee", "cow"):
        fill(f"train/{label}", 2)
        root = fill(f"test/{label}")
    subset = tmp_path / "subset"
    for part in ("train", "test"):
        (subset / part).mkdir(parents=True)
        for label in ANT_BEE:
            (subset / part / label).symlink_to(root / part / label)
    found = find_sources(subset)
    assert [shown(part) for part in (found.train, found.held_out)] == [{"ant": 2, "bee": 2}, {"ant": 1, "bee": 1}]
    assert not found.notes and not found.train.skipped
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "train").symlink_to(root / "train")
    (elsewhere / "val").symlink_to(root / "test")
    found = find_sources(elsewhere)
    assert shown(found.train) == {"ant": 2, "bee": 2, "cow": 2} and len(found.held_out.files) == 3 and not found.notes


def test_a_data_set_one_folder_down_is_not_trained_on_as_a_whole(fill):
    for label in ANT_BEE:
        fill(f"set/train/{label}")
        root = fill(f"set/test/{label}")
    with pytest.raises(ValueError, match=r"holds nothing but a data set of its own, set: give .*/set as data.root"):
        find_sources(root)


def test_a_folder_without_usable_images_is_an_error(fill, tmp_path):
    with pytest.raises(
        ValueError, match=r"absent does not exist; expected ROOT/train/CLASS/IMAGE, ROOT/CLASS/IMAGE or"
    ):
        find_sources(tmp_path / "absent")
    root = fill("", 0)
    with pytest.raises(ValueError, match=re.escape(f"{root} holds no usable image; expected ROOT/train/CLASS/IMAGE")):
        find_sources(root)
    fill("train", 7, b"text")
    with pytest.raises(
        ValueError, match=r"(?s)no usable image.*Left out 7, the first:.*train 0.png: not an image"
    ) as error:
        find_sources(root)
    assert len(str(error.value).splitlines()) == 6

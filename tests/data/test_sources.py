"""amcl_fast.data.sources.folder: layouts of folders as people have them."""

import os
import re

import pytest
from PIL import Image

from amcl_fast.data.scan.left_out import LOOSE, summarise
from amcl_fast.data.sources.folder import find_sources

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


def unreadable(monkeypatch, folder):
    scandir = os.scandir

    def refuse(path):
        if str(path) == str(folder):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)


def scandirs(monkeypatch, root):
    """The folders below that are read from now on, by their real paths."""
    scandir, read = os.scandir, []

    def record(path):
        if os.path.realpath(path).startswith(str(root)):
            read.append(os.path.realpath(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", record)
    return read


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
    unreadable(monkeypatch, root / "test")
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


def test_a_class_that_vanishes_is_told(fill, monkeypatch):
    for label in ("ant", "bee", "cow", "dog"):
        root = fill(f"train/{label}", content=b"text" if label == "cow" else None)
    unreadable(monkeypatch, root / "train/bee")
    found = find_sources(root)
    assert found.train.classes == ["ant", "dog"]
    assert reasons(found.train, root)["train/bee"] == "the folder cannot be read: Permission denied"
    assert found.notes == [
        f"not a class of {root}/train: bee (the folder cannot be read: Permission denied), "
        "cow (it holds no usable image)"
    ]


@pytest.mark.parametrize("part", ["val/ant", "test/ant", "unlabeled"])
def test_a_class_beside_a_part_vanishes_no_other_way(fill, monkeypatch, part):
    for label in ("ant", "bee", "cow", "dog", "empty", part):
        root = fill(label, count=label != "empty", content=b"text" if label == "cow" else None)
    for number in range(250):
        (root / "bee" / f"a {number}.txt").write_text("about")
    unreadable(monkeypatch, root / "dog")
    found = find_sources(root)
    assert shown(found.train) == {"ant": 1, "bee": 1}
    told = reasons(found.train, root)
    assert told.pop("cow/cow 0.png").startswith("not an image")
    assert told.pop("dog") == "the folder cannot be read: Permission denied"
    assert len(told) == 250 and all(path.startswith("bee/a ") for path in told)
    assert found.notes == [
        f"not a class of {root}: cow (it holds no usable image), dog (the folder cannot be read: Permission denied), "
        "empty (it holds no usable image)"
    ]


def test_a_class_that_vanishes_is_told_where_too_few_are_left(fill, monkeypatch):
    for label in ("ant", "bee", "val/ant"):
        root = fill(label)
    unreadable(monkeypatch, root / "bee")
    found = find_sources(root)
    assert found.no_labels == "all images are of one class, 'ant'"
    assert found.notes == [
        f"not a class of {root}: bee (the folder cannot be read: Permission denied)",
        f"{root}/val is not used as the held-out part: the training has no classes",
    ]


@pytest.mark.parametrize("damage", ["unreadable", "content"])
def test_classes_that_have_all_vanished_are_not_replaced_by_what_is_held_out(fill, monkeypatch, damage):
    for label in ("ant", "bee", "val/ant", "val/bee"):
        root = fill(label, content=b"text" if damage == "content" and "val" not in label else None)
    if damage == "unreadable":
        for label in ANT_BEE:
            unreadable(monkeypatch, root / label)
    with pytest.raises(
        ValueError, match=r"root but for val holds no usable .*; to train on val, give that as data.root"
    ):
        find_sources(root)


def test_folders_of_other_files_are_one_line_and_an_entry_each(fill):
    for label in ("ant", "bee", "val/ant"):
        root = fill(label)
    for name in ("labels", "lists"):
        (root / name).mkdir()
        for number in range(300):
            (root / name / f"{number}.txt").write_text("0" * (number % 2))
    (root / "lists" / "LICENSE").write_text("free")
    found = find_sources(root)
    assert shown(found.train) == {"ant": 1, "bee": 1}
    assert found.notes == [f"no image files, so no class, in {root}: labels, lists"]
    assert reasons(found.train, root) == {
        "labels": "it holds no image file: 300 other",
        "lists": "it holds no image file: 301 other",
    }
    assert summarise(found.train.skipped) == "2 folders are left out"


@pytest.mark.parametrize("paths", [["ant", "bee", "val/ant", "val/bee", "val/cow", "unlabeled/x"], ["ant", "train"]])
def test_each_folder_is_read_once(fill, monkeypatch, paths):
    for path in paths:
        root = fill(path)
    (root / "ant" / "link").symlink_to(root / "ant")
    read = scandirs(monkeypatch, root)
    find_sources(root)
    assert len(read) == len(set(read)) == 1 + len({*paths, *(path.split("/")[0] for path in paths)})


def test_few_folders_are_read_to_tell_what_a_flat_train_is(fill, monkeypatch):
    root = fill("train", 2)
    for number in range(500):
        (root / "annotations" / f"{number}" / "deep").mkdir(parents=True)
    read = scandirs(monkeypatch, root)
    found = find_sources(root)
    assert shown(found.train) == {None: 2} and len(read) <= 2 + 200
    beside = "no image among the first files of annotations beside it"
    assert found.notes == [f"{root}/train alone is trained on: {beside}"]


def test_classes_beside_a_flat_train_do_not_vanish(fill, monkeypatch):
    for label in ("ant/a", "ant/b", "bee", "cow", "train"):
        root = fill(label, content=b"text" if label == "bee" else None)
    unreadable(monkeypatch, root / "cow")
    unreadable(monkeypatch, root / "ant" / "a")
    found = find_sources(root)
    assert shown(found.train) == {"ant": 1, "train": 1}
    assert found.notes[1:] == [
        f"not a class of {root}: bee (it holds no usable image), cow (the folder cannot be read: Permission denied)",
        f"1 folder(s) left out, the first: {root}/ant/a: the folder cannot be read: Permission denied",
    ]


def test_a_link_up_is_no_data_set_of_its_own(fill):
    for label in ("train/ant", "train/bee", "test/ant"):
        root = fill(label)
    (root / "train" / "up").symlink_to("..")
    found = find_sources(root)
    assert shown(found.train) == {"ant": 1, "bee": 1} and shown(found.held_out) == {"ant": 1}
    assert found.notes == [f"not a class of {root}/train: up (a link to {root}, which is in the data set already)"]


@pytest.mark.parametrize(
    "paths", [["unlabeled", "val/ant", "val/bee"], ["train", "val/ant"], ["ant", "val/ant"], ["train/ant", "val/ant"]]
)
def test_a_held_out_part_is_not_passed_over_in_silence(fill, paths):
    for path in paths:
        root = fill(path)
    found = find_sources(root)
    assert found.held_out is None
    assert found.notes == [f"{root}/val is not used as the held-out part: the training has no classes"]


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


@pytest.mark.parametrize("beside", [(), ("__MACOSX/set",), ("docs",), ("ant", "bee")])
@pytest.mark.parametrize("rest", ["test", "Unlabeled"])
def test_a_data_set_one_folder_down_is_not_trained_on_as_a_whole(fill, rest, beside):
    for label in ANT_BEE:
        fill(f"set/Training/{label}")
        root = fill(f"set/{rest}/{label}")
    for path in beside:
        fill(path, content=b"text" if path == "docs" else None)
    message = f"{root} holds a data set of its own, set with Training and {rest}: give {root}/set as data.root"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        find_sources(root)


def test_a_split_within_every_class_is_told_and_trained_on_as_before(fill):
    for label in ANT_BEE:
        fill(f"{label}/train", 2)
        root = fill(f"{label}/val", 1)
    found = find_sources(root)
    assert shown(found.train) == {"ant": 3, "bee": 3}
    assert found.notes == [f"each of ant, bee in {root} is trained on as a whole, train and val alike"]


def test_the_data_set_is_the_folder_with_the_images(fill):
    for kind in ("annotations", "images", "labels"):
        for part in ("train", "val"):
            root = fill(f"{kind}/{part}")
            for file in (root / kind / part).iterdir():
                if kind != "images":
                    file.rename(file.with_suffix(".txt")).write_text("0 0.5 0.5 0.1 0.1")
    with pytest.raises(ValueError, match=r"of its own, images with train and val: give .*/images as data.root$"):
        find_sources(root)
    (root / "train").mkdir()
    (root / "images").rename(root / "train" / "images")
    with pytest.raises(ValueError, match=r"/train holds a data set of its own, images with .* give .*/train/images as"):
        find_sources(root)


def test_a_class_may_hold_a_folder_of_the_name_of_a_part(fill):
    fill("bus/train", 2)
    fill("bus/tram", 3)
    root = fill("car/val", 4)
    found = find_sources(root)
    assert shown(found.train) == {"bus": 5, "car": 4} and not found.notes


def test_what_systems_leave_behind_is_no_class_and_no_image(fill):
    for label in ("ant", "ant/@eaDir/ant 0.png", "bee", "__MACOSX/ant", "lost+found", "$Recycle.Bin", "@eaDir"):
        root = fill(label)
    found = find_sources(root)
    assert shown(found.train) == {"ant": 1, "bee": 1}
    assert not found.notes and not found.train.skipped
    fill("train/ant", 2)
    fill("train/bee", 2)
    fill("train/__MACOSX/bee", 2)
    assert shown(find_sources(root).train) == {"ant": 2, "bee": 2}


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

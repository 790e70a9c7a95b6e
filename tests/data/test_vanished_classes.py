"""amcl_fast.data.sources.folder: a class or a part whose images are gone is told, and nothing else takes its place."""

import pytest

from amcl_fast.data.convert import convert
from amcl_fast.data.sources.find import find_images
from amcl_fast.data.sources.folder import find_sources
from amcl_fast.left_out import summarise
from tests.helpers.folders import ANT_BEE, reasons, shown, unreadable
from tests.helpers.small_shards import samples, write_shards


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


@pytest.mark.parametrize(
    "paths", [["unlabeled", "val/ant", "val/bee"], ["train", "val/ant"], ["ant", "val/ant"], ["train/ant", "val/ant"]]
)
def test_a_held_out_part_is_not_passed_over_in_silence(fill, paths):
    for path in paths:
        root = fill(path)
    found = find_sources(root)
    assert found.held_out is None
    assert found.notes == [f"{root}/val is not used as the held-out part: the training has no classes"]


DENIED = "the folder cannot be read: Permission denied"


def test_whatever_cannot_be_read_below_any_part_is_listed_and_told(fill, monkeypatch):
    for label in ("train/ant", "train/bee", "train/bee/deep", "val/ant", "val/bee", "unlabeled/x", "unlabeled/y"):
        root = fill(label)
    hidden = ("train/bee/deep", "unlabeled/x", "val/bee")
    with monkeypatch.context() as denied:
        for path in hidden:
            unreadable(denied, root / path)
        found = find_images(root)
    assert (shown(found.train), shown(found.held_out)) == ({"ant": 1, "bee": 1}, {"ant": 1})
    assert len(found.unlabelled.files) == 1
    assert reasons(found.train, root) == dict.fromkeys(hidden, DENIED)
    assert found.notes == [f"3 folder(s) left out, the first: {root}/val/bee: {DENIED}"]
    assert summarise(found.train.skipped) == "3 left out (3 folders)"
    unreadable(monkeypatch, root / "train" / "bee" / "deep")
    flat = find_images(root / "train" / "bee")
    assert reasons(flat.train, root) == {"train/bee/deep": DENIED}
    assert flat.notes == [f"not a class of {root}/train/bee: deep ({DENIED})"]


def test_what_is_measured_elsewhere_lacks_no_class_in_silence(fill, monkeypatch):
    for label in ("set/ant", "set/bee", "other/ant", "other/bee"):
        root = fill(label)
    unreadable(monkeypatch, root / "other" / "bee")
    found = find_images(root / "set", root / "other")
    assert shown(found.held_out) == {"ant": 1} and reasons(found.held_out, root) == {"other/bee": DENIED}
    assert found.notes == [f"1 folder(s) left out, the first: {root}/other/bee: {DENIED}"]


def test_shards_in_a_part_that_cannot_be_read(tmp_path, monkeypatch):
    write_shards(tmp_path, {f"{part}/0.tar": samples(range(1)) for part in ("train", "val", "unlabeled")})
    with monkeypatch.context() as denied:
        for part in ("val", "unlabeled"):
            unreadable(denied, tmp_path / part)
        found = find_images(tmp_path)
    hidden = {"unlabeled": DENIED, "val": DENIED}
    assert len(found.train.files) == 1 and reasons(found.train, tmp_path) == hidden
    assert found.notes == [f"2 folder(s) left out, the first: {tmp_path}/unlabeled: {DENIED}"]
    unreadable(monkeypatch, tmp_path / "train")
    with pytest.raises(PermissionError, match=f"Permission denied: '{tmp_path}/train'"):  # and val in its place
        find_images(tmp_path)


def test_a_conversion_names_what_it_could_not_read(fill, tmp_path, monkeypatch):
    for label in ANT_BEE:
        root = fill(label)
    unreadable(monkeypatch, root / "bee")
    assert convert(root, tmp_path / "target") == (0, 1, [(f"{root}/bee", DENIED)])

"""amcl_fast.data.sources.folder: a class or a part whose images are gone is told, and nothing else takes its place."""

import pytest

from amcl_fast.data.sources.folder import find_sources
from tests.helpers.folders import ANT_BEE, reasons, shown, unreadable


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

"""amcl_fast.data.sources.folder: links, other files, a data set one folder down, what systems leave behind."""

import re

import pytest

from amcl_fast.data.convert import convert
from amcl_fast.data.scan.classes import scan_classes
from amcl_fast.data.shards.pack import pack
from amcl_fast.data.sources.find import find_images
from amcl_fast.data.sources.folder import find_sources
from amcl_fast.left_out import summarise
from tests.helpers.folders import ANT_BEE, reasons, scandirs, shown
from tests.helpers.small_shards import samples, write_shards


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
    assert summarise(found.train.skipped) == "2 left out (2 folders)"


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


def test_a_link_up_is_no_data_set_of_its_own(fill):
    for label in ("train/ant", "train/bee", "test/ant"):
        root = fill(label)
    (root / "train" / "up").symlink_to("..")
    found = find_sources(root)
    assert shown(found.train) == {"ant": 1, "bee": 1} and shown(found.held_out) == {"ant": 1}
    assert found.notes == [f"not a class of {root}/train: up (a link to {root}, which is in the data set already)"]


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


def test_what_systems_leave_behind_is_no_class_and_no_image(fill):
    for label in ("ant", "ant/@eaDir/ant 0.png", "bee", "__MACOSX/ant", "lost+found", "$Recycle.Bin", "@eaDir"):
        root = fill(label)
    for name in (".DS_Store", "._ant 0.png", "Thumbs.db", "desktop.ini"):
        (root / "ant" / name).write_bytes(b"thumbnails")
        (root / name).write_bytes(b"thumbnails")
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
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.timeout(120)
@pytest.mark.parametrize("links", [1, 20])
def test_whatever_looks_for_images_sees_each_real_folder_once(fill, tmp_path, links):
    """Where a path is the name of a folder, twenty links to the one above it are 20 ** 40 paths."""
    for path in ("train/ant", "train/bee", "test/ant", "unlabeled/deep"):
        root = fill(path, 2)
        for number in range(links):
            (root / path / f"up {number}").symlink_to("..")
            (root / path / f"self {number}").symlink_to(".")
    found = find_images(root)
    assert [len(part.files) for part in (found.train, found.held_out, found.unlabelled)] == [4, 2, 2]
    assert found.notes == [
        f"{8 * links} link(s) to folders not followed, the first: {root}/train/ant/self 0: a link to {root}/train/ant, "
        "which is in the data set already"
    ]
    flat = find_images(root / "train" / "ant")
    assert len(flat.train.files) == 2 and flat.train.classes == []
    elsewhere = find_images(root / "train", root / "test")
    assert (len(elsewhere.train.files), len(elsewhere.held_out.files)) == (4, 2)
    assert len(scan_classes(root / "train").files) == 4
    assert convert(root, tmp_path / "converted") == (0, 8, [])
    assert pack(root, tmp_path / "shards", shard_size=2, shuffle=False).images == 8
    (tmp_path / "shards" / "loop").symlink_to(".")
    (tmp_path / "shards" / "train-000000 again.tar").symlink_to("train-000000.tar")
    (tmp_path / "shards" / "train-000001 again.tar").hardlink_to(tmp_path / "shards" / "train-000001.tar")
    for pattern in ("train-*.tar", "**/train-*.tar", "*/*/train-*.tar", "*/train-*.tar"):
        assert len(find_images(tmp_path / "shards" / pattern).train.files) == 6
    sources = find_images(tmp_path / "shards")
    assert (len(sources.train.files), len(sources.held_out.files)) == (6, 2)


def test_images_on_both_sides_are_told(fill, tmp_path):
    for path in ("train/ant", "train/bee", "test/ant", "test/bee"):
        root = fill(path, 3)
    assert not find_images(root).notes
    train, test = (sorted((root / part / "ant").iterdir()) for part in ("train", "test"))
    for path in test[:2]:
        path.unlink()
    test[0].symlink_to(train[0])
    test[1].hardlink_to(train[1])
    found = find_images(root)
    assert (len(found.train.files), len(found.held_out.files)) == (6, 6)
    assert found.notes == [f"2 file(s) that are held out are trained on as well, the first: {test[0]} is {train[0]}"]
    (root / "train" / "ant" / "z.png").symlink_to(train[0])
    assert len(find_images(root).notes) == 1
    told = "1 file(s) are others once more, and may be held out while these are trained on, the first: "
    assert find_images(root / "train").notes == [f"{told}{train[0].parent}/z.png is {train[0]}"]
    (root / "train" / "ant" / "z.png").unlink()
    (root / "train.csv").write_text(f"{train[0]},ant\n{root}/train/bee/none.png,bee\n{test[2]},bee")
    (root / "test.csv").write_text(f"{test[2]},bee\n{train[1]},ant")
    found = find_images(root / "train.csv", root / "test.csv")
    told = f"1 image(s) of {root}/test.csv are trained on as well, the first: {test[2]}"
    assert found.notes == [told] and len(found.held_out.files) == 2
    shards = write_shards(tmp_path / "shards", {"a.tar": samples(range(6)), "b.tar": samples(range(6, 9))})
    found = find_images(shards / "*.tar", shards / "b.tar")
    told = f"3 image(s) of {shards}/b.tar are trained on as well, the first: {shards}/b.tar/"
    assert found.notes[0].startswith(told)


def test_a_link_to_itself_is_no_folder_and_no_error(fill):
    for label in ("ant", "bee"):
        root = fill(label)
    (root / "loop").symlink_to("loop")
    (root / "ant" / "loop").symlink_to("loop")
    assert shown(find_images(root).train) == {"ant": 1, "bee": 1}

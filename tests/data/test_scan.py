"""amcl_fast.data.scan: which images of a folder of classes can be used."""

import hashlib
import os
import shutil
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from amcl_fast.data.scan import check
from amcl_fast.data.scan.classes import scan_classes
from amcl_fast.data.scan.images import Images
from amcl_fast.data.scan.undecodable import find_undecodable


def reasons(images):
    return {os.path.basename(path): reason for path, reason in images.skipped}


def test_files_are_ordered_and_labelled_by_folder(make_folder):
    root = make_folder(per_class=3)
    images = scan_classes(root)
    assert images.classes == ["ant", "bee", "cow"]
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert images.files == sorted(str(path) for path in root.rglob("*.png"))
    assert images.skipped == []


def test_bad_files_are_left_out_and_listed(make_folder):
    root = make_folder(per_class=4)
    jpeg = root / "ant" / "photo.jpg"
    Image.effect_noise((64, 64), 50).convert("RGB").save(jpeg)
    content = jpeg.read_bytes()
    (root / "ant" / "half.jpg").write_bytes(content[: len(content) // 2])
    (root / "ant" / "tail.jpg").write_bytes(content + b"some data after the end marker")
    (root / "bee" / "text.jpg").write_text("not found")
    (root / "bee" / "empty.png").touch()
    (root / "bee" / ".hidden.jpg").write_text("ignored")
    (root / "cow" / "gone.png").symlink_to("nowhere.png")
    Image.new("RGB", (4, 4)).save(root / "cow" / "moving.jpg", "GIF")
    (root / ".cache").mkdir()
    (root / "readme.txt").write_text("beside the classes: ignored")

    images = scan_classes(root)
    assert reasons(images) == {
        "half.jpg": "corrupt: it cannot be decoded",
        "text.jpg": "not an image (JPEG, PNG, WebP and BMP are supported): it starts with b'not foun'",
        "empty.png": "empty file",
        "gone.png": "dangling link",
        "moving.jpg": "GIF is not supported; JPEG, PNG, WebP and BMP are",
    }
    assert len(images.files) == 12 + 2
    assert str(root / "ant" / "tail.jpg") in images.files
    assert images.labels.tolist() == [0] * 6 + [1] * 4 + [2] * 4


def test_subfolders_links_and_odd_names_are_followed(make_folder, tmp_path):
    root = make_folder(per_class=1)
    nested = root / "ant" / "deeper" / "still"
    nested.mkdir(parents=True)
    shutil.copy(root / "ant" / "000.png", nested / "an odd näme (1) 日本")
    (root / "dog").symlink_to(make_folder("elsewhere", per_class=1) / "cow")
    bad_name = os.fsencode(root / "ant") + b"/\xff.png"
    shutil.copy(root / "ant" / "000.png", bad_name)
    images = scan_classes(root)
    assert images.classes == ["ant", "bee", "cow", "dog"]
    assert images.labels.tolist() == [0, 0, 1, 2, 3]
    assert find_undecodable(images.files) == {}
    assert [reason for _, reason in images.skipped] == ["its name is not valid UTF-8"]


def test_links_in_circles_end(make_folder):
    root = make_folder(per_class=1)
    (root / "ant" / "back").symlink_to(root)
    (root / "ant" / "self").symlink_to("self")
    (root / "loop").symlink_to("loop")
    (root / "bee" / "other").symlink_to(root / "cow")
    (root / "cow" / "one").symlink_to(root / "bee")
    images = scan_classes(root)
    assert images.classes == ["ant", "bee", "cow"]
    assert [os.path.relpath(path, root) for path in images.files] == ["ant/000.png", "bee/000.png", "cow/000.png"]
    told = reasons(images)
    assert "cannot be read: Too many levels" in told.pop("self")
    assert told == {
        "back": f"a link to {root}, which is in the data set already",
        "other": f"a link to {root / 'cow'}, which is in the data set already",
        "one": f"a link to {root / 'bee'}, which is in the data set already",
    }


def test_a_folder_that_cannot_be_read_is_listed(make_folder, monkeypatch):
    root = make_folder(per_class=1)
    scandir = os.scandir

    def refuse(path):
        if str(path) == str(root / "bee"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    images = scan_classes(root)
    assert images.classes == ["ant", "cow"]
    assert images.skipped == [(str(root / "bee"), "the folder cannot be read: Permission denied")]


def test_classes_can_be_given(make_folder):
    root = make_folder(per_class=2)
    images = scan_classes(root, ["cow", "ant"])
    assert images.classes == ["cow", "ant"]
    assert images.labels.tolist() == [1, 1, 0, 0]
    assert [reason for _, reason in images.skipped] == ["its class 'bee' is not one of the training classes"] * 2


def test_a_class_without_a_good_image_is_no_class(make_folder):
    root = make_folder(per_class=1)
    (root / "bee" / "000.png").write_text("text")
    images = scan_classes(root)
    assert images.classes == ["ant", "cow"]
    assert images.labels.tolist() == [0, 1]


def test_folders_without_classes_or_images_are_clear_errors(tmp_path, make_folder):
    flat = tmp_path / "flat"
    flat.mkdir()
    with pytest.raises(ValueError, match=r"flat holds no folder of a class; expected ROOT/CLASS/IMAGE"):
        scan_classes(flat)
    Image.new("RGB", (4, 4)).save(flat / "a.png")
    with pytest.raises(ValueError, match=r"flat holds no folder of a class"):
        scan_classes(flat)
    (flat / "class").mkdir()
    with pytest.raises(ValueError, match=r"flat holds no usable image; expected ROOT/CLASS/IMAGE"):
        scan_classes(flat)
    (flat / "class" / "b.png").write_text("text")
    with pytest.raises(ValueError, match=r"(?s)no usable image.*Left out 1, the first:.*b\.png: not an image"):
        scan_classes(flat)
    with pytest.raises(ValueError, match=r"absent does not exist; expected"):
        scan_classes(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"a\.png is not a folder; expected"):
        scan_classes(flat / "a.png")


def test_all_undecodable_files_of_a_group_are_found(save):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    files = [save(f"{number:02}.png", noise) for number in range(70)]
    bad = [files[number] for number in (0, 33, 34, 69)]
    for path in bad:
        with open(path, "r+b") as file:
            file.seek(1000)
            file.write(bytes(50))
    assert find_undecodable(files) == dict.fromkeys(bad, True)
    assert find_undecodable([]) == {}


def test_what_may_pass_is_no_verdict_that_is_kept(save, tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    (tmp_path / "a").mkdir()
    good, doubtful = save("a/good.png", noise), save("a/doubtful.png", noise)
    with open(doubtful, "ab") as file:
        file.write(b"more")
    monkeypatch.setattr(
        "amcl_fast.data.scan.undecodable.Trial.__call__", lambda *_: "the process does not live: SIGKILL"
    )
    assert scan_classes(tmp_path).files == [good]
    monkeypatch.undo()
    assert scan_classes(tmp_path).files == [doubtful, good]


def test_a_slow_disk_is_asked_by_threads(make_folder, monkeypatch):
    root = make_folder(per_class=80)
    real, threads = os.stat, set()

    def slow(path, *arguments, **options):
        if str(path).endswith(".png"):
            threads.add(threading.get_ident())
            time.sleep(0.005)
        return real(path, *arguments, **options)

    monkeypatch.setattr("os.stat", slow)
    assert len(scan_classes(root).files) == 240
    assert len(threads) > 4


def test_a_long_scan_tells_how_far_it_is(make_folder, monkeypatch, capsys):
    root = make_folder(per_class=5)
    assert scan_classes(root) and capsys.readouterr().err == ""
    monkeypatch.setattr("amcl_fast.progress._SILENT_SECONDS", 0)
    monkeypatch.setattr("amcl_fast.progress._LINE_SECONDS", 0)
    # On a busy machine a tenth of the time so far is long.
    monkeypatch.setattr("amcl_fast.progress.time", SimpleNamespace(monotonic=lambda: 0.0))
    monkeypatch.setattr(check, "_TOGETHER", 5)
    scan_classes(root)
    told = capsys.readouterr().err.splitlines()
    assert "listing files: 5" in told and "checking images: 10 of 15, 0 s left" in told
    assert scan_classes(root, tell=False) and capsys.readouterr().err == ""


def test_images_are_told_apart_and_need_a_label_each():
    images = Images(["/a/1", "/a/2"], [0, 1], ["a", "b"])
    assert images == Images(("/a/1", "/a/2"), np.array([0, 1], np.int32), ["a", "b"])
    for other in (["/a/1", "/a/3"], [0, 1], ["a", "b"]), (["/a/1", "/a/2"], [1, 1], ["a", "b"]):
        assert images != Images(*other)
    assert images.subset([1]) == images.subset(np.array([False, True])) == Images(["/a/2"], [1], ["a", "b"])
    assert images.subset([]) == Images([], [], ["a", "b"]) and "2 files of 2 classes" in repr(images)
    with pytest.raises(ValueError, match="labels must be 2 numbers, one for each file, got 1"):
        Images(["/a/1", "/a/2"], [0], ["a"])


def test_the_fingerprint_is_that_of_earlier_versions():
    images = Images(["/a/1.png", "/b/ü.png", "/b/3.png"], [0, 12, -1], [])
    text = b"".join(
        f"{label}/{os.path.basename(path)}\0".encode() for path, label in zip(images.files, images.labels, strict=True)
    )
    assert images.fingerprint == hashlib.sha256(text).hexdigest()

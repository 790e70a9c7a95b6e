"""Tars of samples: which there are, what is in them, what is told of those that are not as they should be."""

import io
import os
import shutil
import tarfile
import time
from pathlib import Path

import pytest
from PIL import Image

from amcl_fast.data.cache import remove_old
from amcl_fast.data.locations import member, shown
from amcl_fast.data.scan import undecodable
from amcl_fast.data.shards import index as shard_index
from amcl_fast.data.shards import read as shards
from amcl_fast.data.shards.patterns import expand
from amcl_fast.data.sources.find import find_images
from tests.helpers.folders import reasons
from tests.helpers.small_shards import noise, picture, samples


def keys(images):
    """Class (None without) of each sample's key, in order."""
    found = [os.path.basename(shown(location)).split(".")[0] for location in images.files]
    labels = [images.classes[label] if label >= 0 else None for label in images.labels]
    return dict(zip(found, labels, strict=True))


def test_a_folder_of_shards(make_shards):
    root = make_shards({"b.tar": samples(range(4, 8)), "a.tar": samples(range(4))})
    found = find_images(root)
    assert keys(found.train) == {f"{number:04}": str(number % 3) for number in range(8)}
    assert (found.held_out, found.unlabelled, found.no_labels, found.notes) == (None, None, None, [])
    assert found.train.classes == ["0", "1", "2"]
    assert not found.train.skipped
    for location in found.train.files:
        place = member(location)
        content = Path(place.shard).read_bytes()[place.offset : place.offset + place.length]
        assert content == picture(int(place.name[2:6]))


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train/0.tar", "val/0.tar"),
        ("Training/x.tar", "validation/x.tar"),
        ("train-000000.tar", "val-000000.tar"),
        ("imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar"),
        ("0.tar", "test/0.tar"),
    ],
)
def test_parts_by_their_names(make_shards, train, val):
    root = make_shards({train: samples(range(8)), val: samples(range(20, 25)), "unlabeled/9.tar": samples([9], None)})
    found = find_images(root)
    assert list(keys(found.train)) == [f"{number:04}" for number in range(8)]
    assert keys(found.held_out) == {f"00{number}": str(number % 3) for number in range(20, 25)}
    assert keys(found.unlabelled) == {"0009": None}
    assert not found.notes


def test_parts_that_leave_something_open(make_shards):
    root = make_shards({"val-0.tar": samples(range(6))})
    found = find_images(root)
    assert len(found.train.files) == 6 and "no shards for training" in found.notes[0]
    make_shards({"test-0.tar": samples(range(6))})
    with pytest.raises(ValueError, match=r"must have shards for training.*got test and val; to train on one of these"):
        find_images(root)
    make_shards({"train-0.tar": samples(range(6)), "training-0.tar": samples([1]), "other.tar": samples([1])})
    with pytest.raises(ValueError, match="one training part, got train and training"):
        find_images(root)
    (root / "training-0.tar").unlink()
    found = find_images(root)
    assert found.notes == ["not used, beside the shards of train: other.tar"]
    assert len(found.held_out.files) == 6


def test_a_held_out_part_of_other_classes_is_passed_over(make_shards):
    root = make_shards(
        {
            "train-0.tar": samples(range(6), 2),
            "test-0.tar": [("t.png", picture(1)), ("t.cls", b"7")],
            "val-0.tar": samples(range(10, 16)),
        }
    )
    found = find_images(root)
    assert found.notes == [
        f"the shards of test in {root} are not used as the held-out part: its classes (7) are not of those that are "
        "trained on (0, 1)"
    ]
    assert set(keys(found.held_out).values()) == {"0", "1"}
    assert {reason for _, reason in found.held_out.skipped} == {"its class '2' is not one of the training classes"}


def test_images_beside_tars_are_what_is_trained_on(make_shards, make_folder):
    root = make_folder("images")
    make_shards({"ant.tar": samples(range(3)), "train.tar": samples([1])}, "images")
    assert find_images(root).train.classes == ["ant", "bee", "cow"]
    shutil.rmtree(root)
    make_shards({"x.tar": samples(range(3))}, "images")
    (root / "flat.jpg").write_bytes(picture(1, "JPEG"))
    found = find_images(root)
    assert [os.path.basename(path) for path in found.train.files] == ["flat.jpg"]


def test_names_of_classes_lie_beside_the_shards(make_shards):
    root = make_shards({"train/0.tar": samples(range(6), 2), "val/0.tar": samples(range(10, 14), 2)})
    (root / "classes.txt").write_text("ant\nbee\n")
    found = find_images(root)
    assert found.train.classes == found.held_out.classes == ["ant", "bee"]
    (root / "train" / "classes.txt").write_text("bee\nant")
    found = find_images(root)
    assert found.train.classes == ["bee", "ant"]
    # The held-out images' own names count.
    assert {found.held_out.classes[label] for label in found.held_out.labels} == {"ant", "bee"}
    assert keys(found.held_out)["0010"] == "ant" and keys(found.train)["0000"] == "bee"
    (root / "train" / "classes.txt").write_text("bee\n")
    with pytest.raises(ValueError, match=r"classes.txt beside .*0.tar must name all classes, got 1 and a 1.cls"):
        find_images(root)
    (root / "train" / "classes.txt").write_text("bee\nbee\n")
    with pytest.raises(ValueError, match="must name each class once, got 'bee'"):
        find_images(root)


def test_what_a_sample_may_hold(make_shards, tmp_path):
    jpeg = picture(5, "JPEG")
    root = make_shards(
        {
            "a.tar": [
                ("one.cls", b" 1\n"), ("one.json", b"{}"), ("one.seg.png", picture(2)), ("one.jpg", jpeg),
                ("two.JPEG", jpeg), ("two.cls", b"0"), ("two.png", picture(2)),
                ("d.ots/three.v2.jpg", jpeg),
                ("four.jpg", jpeg), ("four.cls", b"cat"),
                ("five.jpg", jpeg), ("five.cls", b"-1"),
                ("six.jpg", jpeg), ("six.cls", b"99999999999"),
                ("._one.jpg", b"AppleDouble"), ("README", b"text"), ("only.cls", b"3"),
                ("late.cls", b"1"), ("seven.jpg", jpeg), ("late.jpg", jpeg),
                ("two.cls", b"1"),
            ]
        }
    )  # fmt: skip
    found = find_images(root)
    assert keys(found.train) == {
        "one": "1", "two": "0", "three": None, "four": None, "five": None, "six": None, "seven": None, "late": "1",
    }  # fmt: skip
    assert shown(found.train.files[0]) == f"{root}/a.tar/one.jpg"
    assert reasons(found.train, root) == {"a.tar/two.png": "its sample has an image already: two.JPEG"}
    (note,) = found.notes
    assert note.startswith("2 .cls hold no number of a class") and "four.cls" in note and "six.cls" in note


def test_bad_images_in_shards_are_left_out_and_listed(make_shards):
    jpeg = picture(5, "JPEG", 64)
    grey = io.BytesIO()
    Image.new("L", (8, 8)).save(grey, "PNG")
    palette = bytearray(grey.getvalue())
    palette[24] = 3  # a depth that greyscale does not have
    root = make_shards(
        {
            "a.tar": [
                ("good.jpg", jpeg), ("cut.jpg", jpeg[:100]), ("half.jpg", noise(1, 100)[:5000]), ("empty.jpg", b""),
                ("x.gif", b"GIF89a" + bytes(50)),
                ("text.png", b"text"), ("odd\udcff.jpg", jpeg), ("doubtful.png", bytes(palette)), ("z.jpg", jpeg),
            ]
        },
        form=tarfile.GNU_FORMAT,
    )  # fmt: skip
    found = find_images(root)
    assert list(keys(found.train)) == ["good", "z"]
    told = reasons(found.train, root)
    assert told.pop("a.tar/cut.jpg").startswith("truncated or corrupt JPEG")
    assert told.pop("a.tar/text.png").startswith("not an image")
    assert told == {
        "a.tar/empty.jpg": "empty file",
        "a.tar/x.gif": "GIF is not supported; JPEG, PNG, WebP and BMP are",
        "a.tar/odd\udcff.jpg": "its name is not valid UTF-8",
        "a.tar/doubtful.png": undecodable.UNDECODABLE,
        "a.tar/half.jpg": undecodable.UNDECODABLE,
    }
    assert find_images(root).train.skipped == found.train.skipped


def test_damaged_tars_give_what_is_before_the_damage(make_shards):
    root = make_shards({name: samples(range(4), None) for name in ("cut.tar", "hole.tar", "whole.tar")})
    make_shards({"zeros.tar": []})
    (root / "nothing.tar").write_bytes(b"")
    (root / "text.tar").write_bytes(b"text" * 500)
    content = (root / "cut.tar").read_bytes()
    third = [member(path) for path in find_images(root / "whole.tar").train.files][2]
    (root / "cut.tar").write_bytes(content[: third.offset + 10])
    (root / "hole.tar").write_bytes(
        content[: third.offset - 512] + b"damage" + content[third.offset - 506 : len(content)]
    )
    os.mkfifo(root / "pipe.tar")
    (root / "dangling.tar").symlink_to("nowhere")
    found = find_images(root)
    assert len(found.train.files) == 2 + 2 + 4
    assert reasons(found.train, root) == {
        "cut.tar/s/0002.png": "truncated: the tar ends within it",
        "hole.tar": f"damaged: no header at byte {third.offset - 512:,}; what follows is not used",
        "text.tar": "damaged: no header at byte 0; what follows is not used",
        "zeros.tar": "it holds no image",
        "nothing.tar": "empty file",
        "pipe.tar": "not a regular file",
        "dangling.tar": "dangling link",
    }


def test_compressed_tars_are_refused_in_one_line(make_shards, tmp_path):
    root = make_shards({"a.tar": samples(range(4))})
    with tarfile.open(root / "b.tar.gz", "w:gz") as tar:
        tar.add(root / "a.tar")
    assert len(find_images(root).train.files) == 4  # it is none of the tars
    with pytest.raises(ValueError, match=r"b.tar.gz is compressed: unpack it to a .tar"):
        find_images(root / "b.tar.gz")
    with pytest.raises(ValueError, match=r"b.tar.gz is compressed: unpack it"):
        find_images(root / "{a.tar,b.tar.gz}")
    (root / "a.tar").unlink()
    with pytest.raises(ValueError, match=r"b.tar.gz is compressed: unpack it"):
        find_images(root)
    (root / "b.tar.gz").rename(root / "c.tar")
    with pytest.raises(ValueError, match=r"holds no usable image(.|\n)*c.tar: compressed by gzip: unpack it"):
        find_images(root)


def test_patterns(make_shards, tmp_path):
    root = make_shards({f"{part}-{number:03}.tar": samples([number]) for part in "ab" for number in (1, 2, 10)})
    assert expand("x-{008..011}.tar") == ["x-008.tar", "x-009.tar", "x-010.tar", "x-011.tar"]
    assert expand("{9..10}/{a,b}.tar") == ["9/a.tar", "9/b.tar", "10/a.tar", "10/b.tar"]
    assert len(find_images(root / "a-{001..002}.tar").train.files) == 2
    found = find_images(root / "{a,b}-{001..003}.tar")
    assert len(found.train.files) == 4
    assert found.notes == [
        f"2 of the 6 shards of {root}/{{a,b}}-{{001..003}}.tar are missing: {root}/a-003.tar, {root}/b-003.tar"
    ]
    assert reasons(found.train, root) == {"a-003.tar": "no such file", "b-003.tar": "no such file"}
    assert len(find_images(root / "a-*.tar").train.files) == 3
    (root / "list.txt").write_text("a-001.tar\n# others\nb-{001..002}.tar\n")
    assert len(find_images(root / "list.txt").train.files) == 3
    for pattern, message in (
        ("a-{003..009}.tar", "none of the 7 shards of .* exists"),
        ("z*.tar", r"no file is named like .*z\*.tar"),
        ("a-{2..1}.tar", "must be a range upwards"),
        ("a-{x}.tar", r"braces must hold a range .* got \{x\}"),
        ("a-{1..2}.jpg", "must stand for tars, got .*a-1.jpg"),
        ("{0..99999}{0..99999}.tar", "stands for more than"),
    ):
        with pytest.raises(ValueError, match=message):
            find_images(root / pattern)
    (root / "list.txt").write_text("a-001.tar\nx.jpg\n")
    with pytest.raises(ValueError, match=r"list.txt, line 2: a list must be of tars or of images alone"):
        find_images(root / "list.txt")


def test_a_tar_counts_once(make_shards, tmp_path):
    """However often it is named, and by whatever name."""
    root = make_shards({f"a-{number}.tar": samples(range(9 * number, 9 * number + 9)) for number in (1, 2)})
    (root / "b-1.tar").symlink_to("a-1.tar")
    (root / "list.txt").write_text("a-1.tar\n*.tar\n")
    for given, again in (
        ("list.txt", ["a-1.tar", "b-1.tar"]),
        ("{a,a,b}-1.tar", ["a-1.tar", "b-1.tar"]),
        ("", ["b-1.tar"]),
    ):
        found = find_images(root / given)
        assert len(set(found.train.files)) == len(found.train.files) == (9 if "{" in given else 18)
        told = ", ".join(f"{root}/{name}" for name in again)
        assert found.notes == [f"{len(again)} shard(s) of {root / given} repeat others and are passed over: {told}"]


def test_held_out_numbers_beyond_the_names_are_of_other_classes(make_shards):
    training = make_shards({"train-0.tar": samples(range(9))})
    (training / "classes.txt").write_text("ant\nbee\n4\n")
    held = make_shards({"val-0.tar": samples(range(10), 5)}, "held")
    found = find_images(training, held)
    assert list(found.held_out.labels) == [0, 1, 2, 0, 1, 2]
    assert sorted(reason for _, reason in found.held_out.skipped) == [
        *["its class '3' is not one of the training classes"] * 2,
        *["its class 'number 4' is not one of the training classes"] * 2,
    ]


def test_what_to_measure_on_can_be_of_any_kind(make_shards, make_folder, tmp_path):
    root = make_shards({"train/0.tar": samples(range(9)), "val/0.tar": samples(range(9))})
    (root / "classes.txt").write_text("ant\nbee\ncow\n")
    folder = make_folder("images", 2)
    (tmp_path / "list.csv").write_text("images/ant/000.png,ant\nimages/bee/001.png,bee\n")
    assert len(find_images(root, folder).held_out.files) == 6
    assert list(find_images(root, tmp_path / "list.csv").held_out.labels) == [0, 1]
    assert len(find_images(folder, root / "val" / "{0..0}.tar").held_out.files) == 9
    assert len(find_images(tmp_path / "list.csv", root / "val").held_out.files) == 6
    found = find_images(root, root)
    assert len(found.held_out.files) == 9 and not found.notes
    (tmp_path / "other.csv").write_text("images/ant/000.png,x\n")
    (tmp_path / "flat.txt").write_text("images/ant/000.png\n")
    with pytest.raises(ValueError, match=r"data.held_out, .*cannot be measured on: its classes \(x\) are not of those"):
        find_images(folder, tmp_path / "other.csv")
    with pytest.raises(
        ValueError, match=r"data.held_out must be of the classes of .*, which has none: the images have"
    ):
        find_images(tmp_path / "flat.txt", folder)


def test_a_tar_that_has_not_changed_is_not_read_again(make_shards, monkeypatch):
    root = make_shards({"a.tar": samples(range(4)), "b.tar": samples(range(4, 8))})
    first = find_images(root)
    asked = []
    real = shards.Pool.map
    monkeypatch.setattr(shards.Pool, "map", lambda pool, jobs: real(pool, (asked.append(job) or job for job in jobs)))
    assert find_images(root) == first and not asked
    os.utime(root / "b.tar", (1, 1))
    assert find_images(root) == first
    assert asked == [os.fsencode(root / "b.tar")]


def test_indexing_that_is_interrupted_goes_on_and_what_is_asked_for_stays(make_shards, own_cache, monkeypatch):
    root = make_shards({f"{name}.tar": samples(range(4)) for name in "abc"})
    asked, real = [], shards.Pool.map

    def interrupted(pool, jobs):
        for place, answer in enumerate(real(pool, jobs)):
            if place == 2:
                raise KeyboardInterrupt
            yield answer

    monkeypatch.setattr(shards.Pool, "map", interrupted)
    with pytest.raises(KeyboardInterrupt):
        find_images(root)
    monkeypatch.setattr(shards.Pool, "map", lambda pool, jobs: real(pool, (asked.append(job) or job for job in jobs)))
    assert len(find_images(root).train.files) == 12 and asked == [os.fsencode(root / "c.tar")]
    long_ago = time.time() - 70 * 86_400
    found = [*(own_cache / "shards").iterdir()]
    for path in found:
        os.utime(path, (long_ago, long_ago))
    (root / "c.tar").unlink()
    find_images(root)
    remove_old()
    assert len(found) == 3 and sum(path.exists() for path in found) == 2


def test_what_is_no_index_is_made_anew(make_shards, own_cache):
    root = make_shards({"a.tar": samples(range(4))})
    first = find_images(root)
    (cached,) = (own_cache / "shards").iterdir()
    content = cached.read_bytes()
    for other in (b"", content[:-1], content[:40] + b"x" + content[41:], content.replace(b" 1\n", b" 2\n", 1), b"[]"):
        cached.write_bytes(other)
        assert find_images(root) == first
        assert cached.read_bytes() == content
    index = shard_index.Index.decoded(content)
    assert index.encoded() == content
    with pytest.raises(ValueError, match="no index"):
        shard_index.Index.decoded(content + b"x")

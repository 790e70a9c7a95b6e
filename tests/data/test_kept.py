"""amcl_fast.data.kept: one process of a machine looks for the images, the others map what it found."""

import os
import time
import tracemalloc

import numpy as np
import pytest
import torch.distributed as dist

from amcl_fast.data import ContrastiveDataModule, kept, module
from amcl_fast.data.module import UnequalImagesError
from amcl_fast.data.scan import Images
from amcl_fast.data.sources import Sources, find_sources

LISTS = "lists"


def module_of(root, prepare=True, **settings):
    data = ContrastiveDataModule(str(root), 8, 4, device="cpu", **settings)
    if prepare:
        data.prepare_data()
    data.setup("fit")
    return data


@pytest.fixture
def several(monkeypatch):
    """This is one process of two, the others are as they are told."""

    def of(*others):
        monkeypatch.setattr(module, "world", lambda: (1, 2))

        def gather(found, own):
            found[:] = [others[0] if others else own, own]

        monkeypatch.setattr(dist, "all_gather_object", gather)

    return of


@pytest.fixture
def everything(make_folder):
    """Two parts and one without labels, with something left out of each and a note."""
    root = make_folder("set/train", per_class=4).parent
    make_folder("set/val", per_class=2, classes=("ant", "cow", "dog"))
    make_folder("set/unlabeled", per_class=3, classes=("x",))
    make_folder("set/train", per_class=1, classes=("ünï\n",))
    for name in (b"train/ant/bad.png", b"val/cow/\xff.png", b"unlabeled/x/bad.png"):
        with open(os.fsencode(root) + b"/" + name, "w") as file:
            file.write("text")
    (root / "train" / "twin").symlink_to("ant")
    return root


def test_the_others_have_what_the_first_has_found(everything):
    found = find_sources(everything)
    assert found.notes and found.train.skipped and found.held_out.skipped and found.unlabelled.skipped
    for other in (kept.keep("set", found), kept.kept("set")):
        assert other == found
        for part in ("train", "held_out", "unlabelled"):
            assert getattr(other, part).fingerprint == getattr(found, part).fingerprint
    assert kept.kept("another") is None


def test_another_process_neither_lists_nor_looks_at_a_file(everything, several, monkeypatch):
    first = module_of(everything)
    several()
    asked = []
    for name in ("stat", "scandir", "lstat"):
        real = getattr(os, name)

        def ask(path, *arguments, name=name, real=real, **options):
            if not isinstance(path, int) and os.fspath(path).startswith(f"{everything}/"):
                asked.append((name, path))
            return real(path, *arguments, **options)

        monkeypatch.setattr(os, name, ask)
    other = module_of(everything, prepare=False)
    assert asked == []
    assert (other.classes, other.skipped, other.num_train) == (first.classes, first.skipped, first.num_train)
    assert other._images() == first._images()


def test_the_first_process_alone_tells_how_far_it_is(everything, monkeypatch, capsys):
    monkeypatch.setattr("amcl_fast.progress._SILENT_SECONDS", 0)
    monkeypatch.setattr(module.rank_zero_only, "rank", 8)  # the first one of another machine
    module_of(everything)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(module.rank_zero_only, "rank", 0)
    module_of(everything)
    assert "listing files: " in capsys.readouterr().err


def test_one_process_alone_looks_for_itself(make_folder):
    root = make_folder("set/train", per_class=2).parent
    module_of(root)
    (root / "train" / "ant" / "000.png").unlink()
    assert module_of(root, prepare=False).num_train == 3 * 1 + 2 - 2


def test_a_list_of_before_is_not_trained_on(make_folder, several):
    """The cache could be written once, and cannot be written any more."""
    root = make_folder("set/train", per_class=4).parent
    make_folder("set/val", per_class=1)
    module_of(root)
    (root / "train" / "bee" / "001.png").unlink()
    (root / "train" / "cow" / "001.png").write_text("text")
    first = find_sources(root)
    now = [(len(part.files), part.fingerprint) for part in (first.train, first.held_out)]
    several(now)
    data = module_of(root, prepare=False)
    assert data.num_train == 12
    data.check_equal()
    assert data.num_train == 10 and [os.path.basename(path) for path, _ in data.skipped] == ["001.png"]
    # Now both have looked, and still differ.
    (root / "train" / "bee" / "002.png").unlink()
    several([(10, "other"), now[1]])
    with pytest.raises(UnequalImagesError, match="got 10 and 3, 9 and 3 to train on"):
        module_of(root).check_equal()


@pytest.mark.parametrize("place", ["the folder", "the list", "the pointer"])
def test_where_nothing_can_be_kept_every_process_looks(everything, own_cache, several, place, caplog):
    found = find_sources(everything)
    if place == "the folder":
        (own_cache / LISTS).parent.mkdir(exist_ok=True)
        (own_cache / LISTS).write_text("a file where the folder should be")
    else:
        kept.keep("set", found)
        for path in (own_cache / LISTS).iterdir():
            if (path.suffix == ".latest") == (place == "the pointer"):
                path.unlink()
                path.mkdir()
                (path / "full").touch()
    assert kept.keep("set", found) is found
    assert kept.kept("set") is None
    several()
    assert module_of(everything, prepare=False).num_train == len(found.train.files) + len(found.unlabelled.files)
    assert not [record for record in caplog.records if "images" in record.message and "kept" in record.message]


def test_a_list_that_is_mapped_is_never_replaced(everything, own_cache):
    def inodes():
        return {path.name: path.stat().st_ino for path in (own_cache / LISTS).glob("*.images")}

    found = find_sources(everything)
    kept.keep("set", found)
    before = inodes()
    kept.keep("set", found)
    kept.keep("the same by another name", found)
    assert inodes() == before and len(before) == 1
    mapped = kept.kept("set")
    (everything / "train" / "ant" / "000.png").unlink()
    kept.keep("set", find_sources(everything))
    assert before.items() < inodes().items() and len(inodes()) == 2
    assert mapped == found and kept.kept("set") != found


def test_old_lists_go_some_day(everything, own_cache):
    found = find_sources(everything)
    kept.keep("old", found)
    (left,) = (own_cache / LISTS).glob("*.images")
    killed = own_cache / LISTS / ".half.images.xyz"
    killed.touch()
    long_ago = time.time() - 70 * 86_400
    for path in (left, killed):
        os.utime(path, (long_ago, long_ago))
    kept.keep("old", found)  # in use again
    (everything / "train" / "ant" / "000.png").unlink()
    kept.keep("new", find_sources(everything))
    assert left.exists() and not killed.exists()
    os.utime(left, (long_ago, long_ago))
    (everything / "train" / "ant" / "001.png").unlink()
    kept.keep("new", find_sources(everything))
    assert not left.exists() and kept.kept("old") is None


def test_a_damaged_list_is_not_believed_and_is_written_again(everything, own_cache):
    found = find_sources(everything)
    kept.keep("set", found)
    (path,) = (own_cache / LISTS).glob("*.images")
    (pointer,) = (own_cache / LISTS).glob("*.latest")
    content, random = path.read_bytes(), np.random.default_rng(0)
    for place in random.integers(0, len(content), 50).tolist():
        damaged = bytearray(content)
        damaged[place] ^= 255
        path.write_bytes(damaged)
        assert kept.kept("set") is None
    path.write_bytes(content[:1000])
    assert kept.kept("set") is None
    assert kept.keep("set", found) == found == kept.kept("set") and path.read_bytes() == content
    for text in ("", "../../../etc/passwd", "0" * 63, "0" * 64, "ü"):
        pointer.write_text(text)
        assert kept.kept("set") is None
    elsewhere = own_cache / "planted"
    elsewhere.write_text("of somebody")
    path.unlink()
    path.symlink_to(elsewhere)
    kept.keep("set", found)
    assert elsewhere.read_text() == "of somebody" and not path.is_symlink() and kept.kept("set") == found


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "images 2"},
        {"parts": {}},
        {"parts": {"train": [1, "f", ["a"], []]}},
        {"parts": {"train": [3, "f", ["a"], []]}},  # labels of two classes
        {"parts": {"train": [3, "f", None, []]}},
        {"parts": {"held_out": [3, "f", ["a", "b"], []]}},
        {"parts": {"train": [3, "f", ["a", "b"], [1]]}},
        {"parts": []},
        {"notes": None, "parts": None},
    ],
)
def test_a_list_of_nonsense_is_refused(change):
    sources = Sources(Images(["/a/1", "/a/2", "/b/1"], [0, 0, 1], ["a", "b"]), None, None, None, [])
    header, arrays = {}, {}
    encode, kept.mapped.encode = kept.mapped.encode, lambda *parts: (header.update(parts[0]), arrays.update(parts[1]))
    try:
        kept._encode(sources)
    finally:
        kept.mapped.encode = encode
    assert kept._decode(header, arrays) == sources
    with pytest.raises(ValueError, match=r"images|version|whole|class|unpack|labels"):
        kept._decode({**header, **change}, arrays)


def test_a_mapped_list_takes_no_memory_of_its_own(own_cache):
    count = 100_000
    files = [f"/data/train/n{number // 1000:08}/n{number // 1000:08}_{number}.JPEG" for number in range(count)]
    images = Images(files, np.arange(count) // 1000, [f"n{number:08}" for number in range(100)])
    kept.keep("set", Sources(images, None, None, None, []))
    (path,) = (own_cache / LISTS).glob("*.images")
    assert path.stat().st_size < 50 * count
    tracemalloc.start()
    found = kept.kept("set")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.train.files) == count and held < count
    assert found.train.files[-1] == files[-1]

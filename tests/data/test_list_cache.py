"""amcl_fast.data.sources.list_cache: one process of a machine looks for the images, the others map what it found."""

import dataclasses
import errno
import os
import time
import tracemalloc

import numpy as np
import pytest
import torch
import torch.distributed as dist

from amcl_fast.data import ContrastiveDataModule, cache, module
from amcl_fast.data.equality import UnequalImagesError, found_by_all
from amcl_fast.data.scan.images import Images
from amcl_fast.data.sources import list_cache as kept
from amcl_fast.data.sources.folder import Sources, find_sources
from amcl_fast.distributed import ElsewhereError
from tests.helpers.processes import end_group, spawn

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


def kept_as(sources, name):
    return dataclasses.replace(sources, name=name)


def said(data):
    """What a process of these data says to the others."""
    own = []

    def gather(found, value):
        found[:] = [value, value]
        own.append(value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_gather_object", gather)
        found_by_all(data._images(), data._list, data._is_kept, 2)
    return own[0]


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
    first = ContrastiveDataModule(str(root), 8, 4, device="cpu")
    first._find = lambda: [kept_as(find_sources(root), "the one of now")]
    first.setup()
    now = said(first)
    several(now)
    data = module_of(root, prepare=False)
    assert data.num_train == 12
    data.check_equal()
    assert data.num_train == 10 and [os.path.basename(path) for path, _ in data.skipped] == ["001.png"]
    # Now both have looked, and still differ.
    (root / "train" / "bee" / "002.png").unlink()
    several(now._replace(parts=[(10, "other", "classes"), now.parts[1]]))
    with pytest.raises(UnequalImagesError, match="got 10 and 3, 9 and 3 to train on"):
        module_of(root).check_equal()


def test_a_list_of_the_same_names_elsewhere_is_not_trained_on(make_folder, several):
    root = make_folder("set/train", per_class=4).parent
    make_folder("set/val", per_class=1)
    module_of(root)
    for name in ("train", "val"):
        (root / name / "ant").rename(root / name / "ants")
    first = ContrastiveDataModule(str(root), 8, 4, device="cpu")
    first._find = lambda: [kept_as(find_sources(root), "the one of now")]
    first.setup()
    several(said(first))
    data = module_of(root, prepare=False)
    assert data.classes == ["ant", "bee", "cow"]
    data.check_equal()
    assert data.classes == ["ants", "bee", "cow"] and all(os.path.exists(path) for path in data._images()[0].files)


def test_classes_of_other_names_are_other_images(make_folder, several):
    data, other = (module_of(make_folder(name, classes=classes)) for name, classes in (("a", "xyz"), ("b", "xyw")))
    assert [part.fingerprint for part in data._images()] == [part.fingerprint for part in other._images()]
    several(said(other)._replace(machine="another", name="another"))
    with pytest.raises(UnequalImagesError, match="must hold the same images for every process"):
        data.check_equal()


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def renamed(rank, store, root):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    kept.write_whole = full
    data = module_of(root, prepare=not rank)
    assert data._is_kept == bool(rank)
    data.check_equal()
    files = [*data._images()[0].files]
    assert len(files) == 12 and all(map(os.path.exists, files)) and data.classes == ["ants", "bee", "cow"]
    # The one that looks again may find nothing: the others are told, and do not wait.
    data = module_of(root, prepare=not rank)
    if rank:
        data._find = lambda: [find_sources(root / "gone")]
    with pytest.raises(ValueError if rank else ElsewhereError, match="gone does not exist"):
        data.check_equal()
    end_group()


@pytest.mark.distributed
def test_a_process_whose_list_is_of_before_looks_again_and_errors_are_told(make_folder, tmp_path, own_cache):
    """The cache is full: the first process cannot keep what it has found, and there is a list of an earlier run."""
    root = make_folder("set/train", per_class=4).parent
    make_folder("set/val", per_class=1)
    module_of(root)
    (root / "train" / "ant").rename(root / "train" / "ants")
    (root / "val" / "ant").rename(root / "val" / "ants")
    spawn(renamed, args=(tmp_path / "store", root), nprocs=2)


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
    again = kept.keep("set", found)
    assert again == found and again.train is found.train
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


@pytest.mark.parametrize("links", [True, False])
def test_of_two_that_write_a_list_at_once_the_first_one_stays(everything, own_cache, monkeypatch, links):
    """Another machine would lose what it has mapped."""
    found, first = find_sources(everything), []

    def meanwhile(path, content, **options):
        if not first:
            first.append(None)
            kept.keep("of the other", found)
            first[:] = [path.stat().st_ino for path in (own_cache / LISTS).glob("*.images")]
        cache.write_whole(path, content, **options)

    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(kept, "write_whole", meanwhile)
    assert kept.keep("set", found) == found == kept.kept("set")
    (path,) = (own_cache / LISTS).glob("*.images")
    assert ([path.stat().st_ino] == first) == links
    assert not [*(own_cache / LISTS).glob(".*")]


def test_nothing_of_a_folder_that_is_linked_into_the_cache_goes(everything, own_cache, tmp_path, caplog):
    theirs = tmp_path / "theirs" / ("0" * 32)
    theirs.parent.mkdir()
    theirs.touch()
    os.utime(theirs, (0, 0))
    own_cache.mkdir(exist_ok=True)
    for name in ("scans", "shards", LISTS):
        (own_cache / name).symlink_to(theirs.parent)
    kept.keep("set", find_sources(everything))
    (told,) = {record.message for record in caplog.records if record.levelname == "WARNING"}
    assert f"({own_cache}/scans is a link to {theirs.parent}, and nothing is written through it: remove it)" in told
    (own_cache / LISTS).unlink()
    kept.keep("set", find_sources(everything))
    assert kept.kept("set") is not None and [*theirs.parent.iterdir()] == [theirs]


def test_old_lists_go_some_day(everything, own_cache):
    found = find_sources(everything)
    kept.keep("old", found)
    (left,) = (own_cache / LISTS).glob("*.images")
    digest = "0123456789abcdef" * 2
    killed = own_cache / LISTS / f".{digest}.images.xyz"
    others = [own_cache / "scans" / digest, own_cache / "shards" / f"{digest}.index", own_cache / "datasets" / digest]
    others.append(own_cache / LISTS / "train.txt")  # of a user whose own folder this is
    long_ago = time.time() - 70 * 86_400
    for path in (killed, *others):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for path in (left, killed, *others):
        os.utime(path, (long_ago, long_ago))
    kept.keep("old", found)  # in use again
    (everything / "train" / "ant" / "000.png").unlink()
    kept.keep("new", find_sources(everything))
    assert left.exists() and not killed.exists() and [path.exists() for path in others] == [False, False, True, True]
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
        {"kind": "images 1"},
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
    files = kept.array_files
    encode, files.encode = files.encode, lambda *parts: (header.update(parts[0]), arrays.update(parts[1]))
    try:
        kept._encode(sources)
    finally:
        files.encode = encode
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

"""amcl_fast.data.scan.verdict_cache: no file is looked at twice, and no damage of the cache is believed."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amcl_fast.data import array_files
from amcl_fast.data.cache import remove_old
from amcl_fast.data.packed_paths import PackedPaths
from amcl_fast.data.scan import check, header_process
from amcl_fast.data.scan.classes import scan_classes
from amcl_fast.data.scan.limits import DEFAULT_LIMITS
from amcl_fast.data.scan.verdict_cache import Verdicts


def test_verdicts_are_kept_in_the_cache_alone_until_a_file_changes(make_folder, own_cache, monkeypatch):
    root = make_folder(per_class=2)
    (root / "ant" / "bad.png").write_bytes(b"text")
    before = sorted(root.rglob("*"))
    first = scan_classes(root)
    assert sorted(root.rglob("*")) == before
    assert len(list((own_cache / "scans").iterdir())) == 1

    looked_at = []
    look = header_process.look_at
    monkeypatch.setattr(header_process, "look_at", lambda path, *more: looked_at.append(path) or look(path, *more))
    assert scan_classes(root) == first
    assert looked_at == []

    changed = root / "bee" / "001.png"
    changed.write_bytes(b"no image any more")
    Image.new("RGB", (4, 4)).save(root / "ant" / "bad.png")
    again = scan_classes(root)
    assert sorted(looked_at) == [str(root / "ant" / "bad.png"), str(changed)]
    assert [path for path, _ in again.skipped] == [str(changed)]

    next((own_cache / "scans").iterdir()).write_text("{broken")
    assert scan_classes(root) == again


def test_a_cache_that_cannot_be_written_does_not_stop_the_scan(make_folder, own_cache, caplog):
    own_cache.write_text("a file where the folder should be")
    assert len(scan_classes(make_folder(per_class=2)).files) == 6
    assert "cannot be kept" in caplog.text


def names(images):
    return [os.path.basename(path) for path in images.files]


@pytest.fixture
def opened(monkeypatch):
    """Paths of files that are opened from now on."""
    found, real = [], os.open

    def record(path, *arguments, **options):
        if not isinstance(path, int) and os.fspath(path).endswith((".png", ".jpg")):
            found.append(os.fspath(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr("os.open", record)
    return found


def test_an_unchanged_folder_costs_no_look_into_a_file(make_folder, opened):
    root = make_folder(per_class=40)
    (root / "ant" / "bad.png").write_text("text")
    first = scan_classes(root)
    assert len(opened) == 121
    opened.clear()
    assert scan_classes(root) == first and opened == []

    changed = root / "bee" / "007.png"
    os.utime(changed, ns=(0, changed.stat().st_mtime_ns + 1))
    assert scan_classes(root) == first and opened == [str(changed)]
    opened.clear()
    # One that comes, one that goes and a folder that comes make the others no strangers.
    (root / "ant" / "020.png").unlink()
    shutil.copy(changed, root / "ant" / "020 a.png")
    make_folder("images/more", per_class=2)
    again = scan_classes(root)
    new = [root / "ant" / "020 a.png", *sorted((root / "more").rglob("*.png"))]
    assert sorted(opened) == sorted(str(path) for path in new)  # a busy disk is asked by several threads
    assert names(again)[19:22] == ["019.png", "020 a.png", "021.png"] and len(again.files) == 126
    opened.clear()
    assert scan_classes(root) == again and opened == []
    shutil.rmtree(root / "more")
    assert len(scan_classes(root).files) == 120 and opened == []


def test_the_cache_is_written_when_there_is_something_new(make_folder, own_cache):
    root = make_folder(per_class=3)
    (root / "ant" / "gone.png").symlink_to("nowhere.png")  # it is looked at every time

    def written():
        scan_classes(root)
        (cache,) = (own_cache / "scans").iterdir()
        return cache.stat().st_ino, cache.stat().st_mtime_ns

    first = written()
    assert written() == first
    for change in (
        lambda: (root / "ant" / "gone.png").unlink(),
        lambda: (root / "ant" / "001.png").write_text("text"),
        lambda: shutil.copy(root / "ant" / "000.png", root / "ant" / "001.png"),
        lambda: shutil.rmtree(root / "bee"),
    ):
        change()
        second = written()
        assert second != first and written() == second
        first = second


def test_processes_come_to_the_same_verdicts(make_folder, own_cache, monkeypatch, opened):
    root = make_folder(per_class=60)
    for number in range(0, 60, 7):
        (root / "bee" / f"{number:03}.png").write_bytes(b"text" * number)
    shutil.copy(root / "ant" / "000.png", os.fsencode(root / "ant") + b"/\xff.png")
    (root / "cow" / "gone.png").symlink_to("nowhere.png")
    with open(root / "cow" / "003.png", "ab") as file:
        file.write(b"doubtful")
    alone = scan_classes(root)
    (cache,) = (own_cache / "scans").iterdir()
    content = cache.read_bytes()
    cache.unlink()
    opened.clear()
    monkeypatch.setattr(check, "_MANY", 1)
    monkeypatch.setattr(check, "_TOGETHER", 25)
    assert scan_classes(root) == alone
    assert opened == [] and cache.read_bytes() == content  # not this process
    assert scan_classes(root) == alone and cache.read_bytes() == content


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_scan_goes_on_where_it_was(make_folder, opened, monkeypatch, error):
    root = make_folder(per_class=20)
    for number in range(0, 20, 3):
        (root / "ant" / f"{number:03}.png").write_text("text")
    with open(root / "ant" / "001.png", "ab") as file:
        file.write(b"doubtful")
    answers, real = [], header_process.answer

    def answer(job):
        if len(answers) == 7:
            raise error
        answers.append(None)
        return real(job)

    monkeypatch.setattr(check, "_TOGETHER", 5)
    monkeypatch.setattr(header_process, "answer", answer)
    with pytest.raises(error):
        scan_classes(root)
    assert len(opened) == 35
    monkeypatch.setattr(header_process, "answer", real)
    opened.clear()
    again = scan_classes(root)
    # What only decoding can tell had not been decoded.
    assert len(opened) == 25 + 1 and opened[0].endswith("001.png") and len(again.skipped) == 7
    # What was known already stays known, also of folders that were not reached.
    (root / "ant" / "000.png").unlink()
    answers[:] = [None] * 5
    monkeypatch.setattr(header_process, "answer", answer)
    with pytest.raises(error):
        scan_classes(root)
    monkeypatch.setattr(header_process, "answer", real)
    opened.clear()
    assert scan_classes(root).files == again.files and opened == []


def test_a_long_scan_that_is_killed_loses_little(make_folder, own_cache, opened, monkeypatch):
    root = make_folder(per_class=20)
    with open(root / "bee" / "001.png", "ab") as file:
        file.write(b"doubtful")
    first, jobs, real = [], [], header_process.answer

    def answer(job):
        if len(jobs) == 7:
            first.extend((own_cache / "scans").iterdir())
            first.append(first[0].read_bytes())
        jobs.append(None)
        return real(job)

    monkeypatch.setattr(check, "_TOGETHER", 5)
    monkeypatch.setattr(check, "_KEPT_EVERY", 0)
    monkeypatch.setattr(header_process, "answer", answer)
    found = scan_classes(root)
    cache, content = first
    assert cache.read_bytes() != content
    cache.write_bytes(content)
    opened.clear()
    assert scan_classes(root) == found and len(opened) == 25 + 1
    opened.clear()
    assert scan_classes(root) == found and opened == []


def test_verdicts_are_not_mapped_and_stay_as_long_as_they_are_asked_for(make_folder, own_cache):
    """Another machine may replace them."""
    root = make_folder(per_class=3)
    scan_classes(root)
    (cache,) = (own_cache / "scans").iterdir()
    long_ago = time.time() - 70 * 86_400
    os.utime(cache, (long_ago, long_ago))
    verdicts = Verdicts(str(root), DEFAULT_LIMITS)
    assert str(cache) not in Path("/proc/self/maps").read_text()
    assert (verdicts.known(f"{root}/ant/", b"000.png\x00001.png\x00002.png\0").sizes > 0).all()
    remove_old()
    assert cache.exists()


def test_no_damage_of_the_cache_is_believed(make_folder, own_cache, opened):
    root = make_folder(per_class=3)
    (root / "ant" / "bad.png").write_text("text")
    expected = scan_classes(root)
    (cache,) = (own_cache / "scans").iterdir()
    content, random = cache.read_bytes(), np.random.default_rng(0)
    for place in random.integers(0, len(content), 40).tolist():
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(random.integers(8))
        for written in (bytes(damaged), content[:place]):
            cache.write_bytes(written)
            opened.clear()
            assert scan_classes(root) == expected and len(opened) == 10
            assert cache.read_bytes() == content
    cache.unlink()
    os.mkfifo(cache)
    assert scan_classes(root) == expected and cache.read_bytes() == content
    planted = own_cache / "somebody's"
    planted.write_text("else")
    cache.unlink()
    cache.symlink_to(planted)
    assert scan_classes(root) == expected and planted.read_text() == "else" and cache.read_bytes() == content


@pytest.mark.parametrize(
    ("header", "arrays"),
    [
        ({"kind": "verdicts 0"}, {}),
        ({"reasons": []}, {}),
        ({"reasons": [1]}, {}),
        ({"reasons": None}, {}),
        ({}, {"codes": np.full(10, -1, np.int32)}),
        ({}, {"counts": np.array([4, 3, 4])}),
        ({}, {"counts": np.array([14, -4, 0])}),
        ({}, {"sizes": np.empty(0, np.int64)}),
        ({}, {"names": np.frombuffer(b"one name", np.uint8)}),
        ({}, {"folders": np.frombuffer(b"one\0", np.uint8)}),
    ],
)
def test_a_cache_of_nonsense_is_not_believed(make_folder, own_cache, opened, header, arrays):
    root = make_folder(per_class=3)
    (root / "ant" / "bad.png").write_text("text")
    expected = scan_classes(root)
    (cache,) = (own_cache / "scans").iterdir()
    old_header, old_arrays = array_files.read(cache)
    cache.write_bytes(b"".join(array_files.encode({**old_header, **header}, {**old_arrays, **arrays}).pieces))
    opened.clear()
    assert scan_classes(root) == expected and len(opened) == 10


def test_the_cache_of_an_earlier_version_goes(make_folder, own_cache):
    root = make_folder(per_class=1)
    scan_classes(root)
    (cache,) = (own_cache / "scans").iterdir()
    earlier = cache.with_suffix(".json")
    cache.rename(earlier)
    scan_classes(root)
    assert cache.exists() and not earlier.exists()


def test_files_of_a_list_need_not_lie_in_one_folder(make_folder, own_cache, opened):
    files = sorted(str(path) for name in ("aaa", "bbb") for path in make_folder(name, per_class=2).rglob("*.png"))
    shuffled = [files[place] for place in np.random.default_rng(0).permutation(len(files))]
    for count in (12, 0):
        (group,) = check.check_files("/lists/of images.txt", {"": PackedPaths.pack(shuffled)}).values()
        assert group.good() == shuffled and len(opened) == count
        opened.clear()

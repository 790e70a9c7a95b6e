"""The folder of `bench scale`: what it holds, what it refuses, and that it goes whatever happens."""

import errno
import io
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.measure.scale import tree as tree_module
from benchmarks.measure.scale.tree import LEAST, photograph, tree
from benchmarks.temporary import PREFIX
from tests.helpers.command_line import image_folder

ROOT = Path(__file__).parents[4]


@pytest.fixture
def photographs(tmp_path):
    return image_folder(tmp_path / "photographs", 3, 1)


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """The folder of temporary folders."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_what_it_holds(photographs, temporary):
    before = {path: path.stat() for path in photographs.rglob("*.jpg")}
    with tree(2001, photographs) as made:
        for root, images, classes in ((made.full, 2001, 100), (made.tenth, 200, 10), (made.small, LEAST, 50)):
            sizes = [len(list(folder.iterdir())) for folder in sorted(root.iterdir())]
            assert len(sizes) == classes and sum(sizes) == images and max(sizes) - min(sizes) <= 1
        inodes = {path.stat().st_ino for path in made.full.rglob("*.jpg")}
        assert len(inodes) == 6 and sorted(path.name for path in (made.full / "n00000001").iterdir())[0] == (
            "n00000001_0.jpg"
        )
        assert temporary in made.folder.parents
    assert not list(temporary.iterdir())
    for path, stat in before.items():
        assert (path.stat().st_ctime_ns, path.stat().st_nlink) == (stat.st_ctime_ns, 1)


def test_no_file_has_more_links_than_file_systems_take(photographs, monkeypatch):
    monkeypatch.setattr(tree_module, "_MOST_LINKS", 100)
    with tree(LEAST, photographs) as made:
        assert max(path.stat().st_nlink for path in made.full.rglob("*.jpg")) <= 220


def test_drawn_images_are_as_large_as_photographs():
    pixels = photograph(np.random.default_rng(3))
    assert pixels.shape == (375, 500, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=92)
    assert 80_000 < len(file.getvalue()) < 140_000
    assert np.array_equal(pixels, photograph(np.random.default_rng(3)))


def test_they_are_drawn_without_photographs(monkeypatch, temporary):
    monkeypatch.setattr(tree_module, "_SOURCES", 2)
    with tree(LEAST, None) as made:
        path = next(iter(made.full.rglob("*.JPEG")))
        assert Image.open(path).size == (500, 375)


def test_what_is_refused(photographs, monkeypatch, temporary):
    with pytest.raises(ValueError, match="--images must be at least 1,000, got 999"), tree(999, photographs):
        pass
    with (
        pytest.raises(
            ValueError, match=r"TMPDIR must have [\d,]{9,} MiB and [\d,]+ inodes free .*, got .*temporary with"
        ),
        tree(10**12, photographs),
    ):
        pass

    def link(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with (
        pytest.raises(ValueError, match=r"got .*temporary, which takes no more hard links \(Operation not permitted\)"),
        tree(LEAST, photographs),
    ):
        pass
    assert not list(temporary.iterdir())


def test_it_goes_with_an_error(photographs, temporary):
    with pytest.raises(ZeroDivisionError), tree(LEAST, photographs):
        raise ZeroDivisionError
    assert not list(temporary.iterdir())


def await_(condition):
    stop = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < stop
        time.sleep(0.05)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_it_goes_with_the_process(photographs, temporary, signum):
    code = "import sys, time; from pathlib import Path; from benchmarks.measure.scale.tree import tree\n"
    code += "with tree(1000, Path(sys.argv[1])): print(flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, photographs], cwd=ROOT, env=os.environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    await_(lambda: list(temporary.glob(f"{PREFIX}*/full/n00000049/*_19.jpg")))
    process.send_signal(signum)
    assert process.wait(60) == -signum
    await_(lambda: not list(temporary.glob(f"{PREFIX}*")))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_removes_it_and_ends_what_measures(photographs, temporary, tmp_path, signum):
    process = subprocess.Popen(
        [sys.executable, "-m", "amcl_fast.cli", "bench", "scale", "--case", "start", "--images", "1000", "--data",
         photographs, "--output", tmp_path],
        cwd=tmp_path, env=os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def measures():
        found = []
        for pid in children.read_text().split():
            with suppress(OSError):  # it has ended since
                if b"scale.answers" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    await_(measures)
    (measuring,) = measures()
    os.killpg(process.pid, signum)
    _, err = process.communicate(timeout=60)
    if signum == signal.SIGINT:
        assert "Traceback" not in err
        assert process.returncode == 130, err
        told = "before its end: of the results, the sections that are said to be written are kept"
        assert err.rstrip().endswith(told)
        assert not Path(f"/proc/{measuring}").exists() and not list(temporary.glob(f"{PREFIX}*"))
    else:
        assert process.returncode == -signum, err
        await_(lambda: not runs(measuring) and not list(temporary.glob(f"{PREFIX}*")))
    assert not list(tmp_path.glob("*.json"))


def runs(pid):
    """Whether there is such a process, other than as a zombie that nobody has waited for."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False

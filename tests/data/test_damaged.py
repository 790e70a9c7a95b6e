"""Damaged images that decode: a line each that names it, and nothing else of decoders on the terminal."""

import io
import subprocess
import sys
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from amcl_fast.data.decoding import damaged
from amcl_fast.data.decoding.complaints_process import Lines
from amcl_fast.data.decoding.damaged import Damaged
from amcl_fast.data.decoding.trial import Trial
from amcl_fast.data.processes.worker import Worker
from amcl_fast.data.reading.reader import Reader
from tests.helpers import forks
from tests.helpers.command_line import environment

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


def encoded(kind):
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(buffer, kind)
    return buffer.getvalue()


def cut(jpeg):
    return jpeg[: len(jpeg) // 2] + b"\xff\xd9"


def overwritten(jpeg):
    middle = len(jpeg) // 2
    return jpeg[:middle] + bytes(400) + jpeg[middle + 400 :]


def extended(jpeg):
    return jpeg[:-2] + b"abcdef\xff\xd9"


def with_profile(png):
    """A colour profile that is none: the pixels are whole."""
    content = b"icc\0\0" + zlib.compress(b"no profile")
    checksum = zlib.crc32(b"iCCP" + content).to_bytes(4, "big")
    return png[:33] + len(content).to_bytes(4, "big") + b"iCCP" + content + checksum + png[33:]


DAMAGE = {"cut.jpg": cut, "overwritten.jpg": overwritten, "extended.jpg": extended}
LOADERS = {
    "training": "ContrastiveLoader(images, [Augmentation()] * 2, output)",
    "evaluation": "EvaluationLoader(images, output)",
}
CODE = """
import ctypes, sys
from pathlib import Path
from amcl_fast.data import Augmentation, ContrastiveLoader, EvaluationLoader
from amcl_fast.data.graph import Output
from amcl_fast.data.scan.images import Images

files = sorted(map(str, Path(sys.argv[1]).iterdir()))
images, output = Images(files, [0] * len(files), ["a"]), Output(size=8, batch_size=4)
loader = {loader}
for _ in range(3):
    for _ in loader:
        pass
libc = ctypes.CDLL(None)
libc.fputs(b"another library has something to say\\n", ctypes.c_void_p.in_dll(libc, "stderr"))
libc.__assert_fail(b"what is", b"file.c", 3, b"function")
"""


@pytest.mark.parametrize("loader", LOADERS)
def test_each_damaged_image_is_a_line_and_the_last_words_of_other_libraries_are_shown(tmp_path, loader):
    folder = tmp_path / "images"
    folder.mkdir()
    jpeg = encoded("JPEG")
    for name, damage in DAMAGE.items():
        (folder / name).write_bytes(damage(jpeg))
    for number in range(17):
        (folder / f"{number}.jpg").write_bytes(jpeg)
    (folder / "profile.png").write_bytes(with_profile(encoded("PNG")))
    code = CODE.format(loader=LOADERS[loader])
    done = forks.run([sys.executable, "-c", code, folder], env=environment(tmp_path), timeout=120)
    *named, other, assertion = done.stderr.splitlines()
    assert other == "another library has something to say"
    assert "Assertion `what is' failed" in assertion
    assert sorted(line.partition(": ")[0] for line in named) == sorted(str(folder / name) for name in DAMAGE)
    assert all(": damaged, and decoded as far as it goes: Corrupt JPEG data: " in line for line in named)


HELD_UP = """
import ctypes, os, signal, time
from amcl_fast.data.decoding import complaints as module

counted = module.complaints()
libc = ctypes.CDLL(None)

def complain():
    libc.fputs(b"Corrupt JPEG data: of a test\\n", ctypes.c_void_p.in_dll(libc, "stderr"))
    return counted.heard()

heard = [complain()]
os.kill(counted._worker._process.pid, signal.SIGSTOP)
started = time.monotonic()
for _ in range(20):
    complain()
waited = time.monotonic() - started
os.kill(counted._worker._process.pid, signal.SIGCONT)
module._SECONDS = 60.0  # of a busy machine
while counted.heard() < 21:
    time.sleep(0.01)
heard += [complain() for _ in range(3)]
print(heard, waited < 10)
"""


def test_a_process_that_is_held_up_costs_a_second_once_and_loses_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", HELD_UP], capture_output=True, text=True, env=environment(tmp_path), timeout=120
    )
    assert done.stdout == "[1, 22, 23, 24] True\n", done.stderr


@pytest.mark.parametrize(
    ("printed", "lines"),
    [
        # Ends of lines that libpng prints are those that come after another thread's line.
        ([b"libpng warning: iCCPCorrupt JPEG data: 3", b""], [b"libpng warning: iCCP", b"Corrupt JPEG data: 3"]),
        ([b"libpng warning: alibpng error: b", b"", b""], [b"libpng warning: a", b"libpng error: b", b""]),
        ([b"libpng warning: a\1amcl-fast", b"", b"c"], [b"libpng warning: a", b"\1amcl-fast", b"c"]),
        ([b"", b"libpng warning: a", b"", b"other"], [b"", b"libpng warning: a", b"", b"other"]),
        ([b"of Corrupt JPEG data", b"Corrupt JPEG data: Corrupt JPEG data"],) * 2,
    ],
)
def test_lines_of_threads_are_told_apart(printed, lines):
    of_threads = Lines()
    assert [line for one in printed for line in of_threads.split(one)] == lines


def test_a_complaint_within_a_line_of_libpng_is_heard(tmp_path):
    code = (
        "import ctypes\n"
        "from amcl_fast.data.decoding.complaints import complaints\n"
        "counted, libc = complaints(), ctypes.CDLL(None)\n"
        "parts = b'libpng warning: iCCP', b'Corrupt JPEG data: 3\\n', b'\\n', b'other\\n', b'libpng warning: a'\n"
        "for part in parts:\n"
        "    libc.fputs(part, ctypes.c_void_p.in_dll(libc, 'stderr'))\n"
        "print(counted.heard(), counted._marked)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(tmp_path))
    assert (done.stdout, done.stderr) == ("1 1\n", "other\n")


class Counted:
    """Complaints by hand."""

    def __init__(self):
        self.count = 0

    def heard(self):
        return self.count


@pytest.fixture
def counted(monkeypatch):
    found = Counted()
    monkeypatch.setattr(damaged, "complaints", lambda: found)
    return found


def look(names, files, bad="bad"):
    """Look at files of which those with `bad` in their name are damaged; returns those that were decoded again."""
    again = []

    def read(group):
        return SimpleNamespace(images=group, bad={})

    class Decoder:
        def complaint(self, image):
            again.append(image)
            return "Corrupt JPEG data" if bad in image else None

    names.look(lambda: files, read, Decoder())
    return again


def test_an_image_is_decoded_again_once_and_only_after_a_complaint(counted, caplog):
    names = Damaged()
    assert look(names, ["a", "bad"]) == []
    counted.count = 1
    assert look(names, ["a", "bad", "a"]) == ["a", "bad"]
    assert [record.message for record in caplog.records] == [
        "bad: damaged, and decoded as far as it goes: Corrupt JPEG data"
    ]
    assert look(names, ["b"]) == []
    counted.count = 2  # the one that is known, again
    assert look(names, ["b", "bad"]) == ["b"]
    counted.count = 4
    assert look(names, ["a", "b", "bad", "bad too"]) == ["bad too"]
    assert len(caplog.records) == 2


def test_naming_comes_to_an_end(counted, caplog, monkeypatch):
    assert damaged._MOST_NAMED == 5
    monkeypatch.setattr(damaged, "_MOST_NAMED", 40)
    names = Damaged()
    counted.count = 100
    assert len(look(names, [f"bad {number}" for number in range(100)])) == 40
    assert caplog.records[-1].message == "further damaged images that can be decoded are not named"
    counted.count = 200
    assert look(names, ["bad", "other"]) == []
    assert len(caplog.records) == 41
    monkeypatch.setattr(damaged, "_MOST_SECONDS", 0.0)
    slow = Damaged()
    assert len(look(slow, [f"good {number}" for number in range(100)])) == 32
    assert len(caplog.records) == 42


def test_a_trial_tells_what_the_decoder_says(tmp_path):
    trial = Trial()
    jpeg = encoded("JPEG")
    (tmp_path / "whole.jpg").write_bytes(jpeg)
    (tmp_path / "cut.jpg").write_bytes(cut(jpeg))
    (tmp_path / "profile.png").write_bytes(with_profile(encoded("PNG")))
    images = Reader().read([str(tmp_path / name) for name in ("whole.jpg", "cut.jpg", "profile.png")]).images
    said = [trial.complaint(image) for image in images]
    assert said == [None, "Corrupt JPEG data: premature end of data segment", None]
    assert [trial(image) for image in images] == [None] * 3
    assert trial.complaint(np.frombuffer(b"text", np.uint8)) is None
    trial.close()


def test_a_trial_that_is_interrupted_mixes_up_no_answers(monkeypatch):
    trial, receive = Trial(), Worker.receive
    jpeg = encoded("JPEG")
    good, damaged_one = (np.frombuffer(content, np.uint8) for content in (jpeg, cut(jpeg)))
    assert trial.complaint(good) is None

    def interrupted(worker, seconds=None):
        monkeypatch.setattr(Worker, "receive", receive)
        raise KeyboardInterrupt

    monkeypatch.setattr(Worker, "receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trial.complaint(damaged_one)
    assert [trial.complaint(image) is None for image in (good, damaged_one, good)] == [True, False, True]
    trial.close()

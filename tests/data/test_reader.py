"""amcl_fast.data.reading.reader: a process that reads, whatever becomes of it and whatever lies there."""

import gc
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
import torch

from amcl_fast.data import Augmentation, ContrastiveLoader
from amcl_fast.data.decoding.complaints import complaints
from amcl_fast.data.graph import Output
from amcl_fast.data.reading.reader import Reader
from amcl_fast.data.scan.headers import BadImage, open_image
from tests.helpers.damaged_files import JPEG, kinds
from tests.helpers.disk import no_room

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_what_is_no_regular_file_is_not_opened(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("os.open", lambda path, *rest: opened.append(path))
    for kind in ("FIFO", "socket", "endless device", "folder", "link to a FIFO"):
        (tmp_path / kind).write_bytes(JPEG)
        monkeypatch.undo()
        kinds()[kind](tmp_path / kind)
        monkeypatch.setattr("os.open", lambda path, *rest: opened.append(path))
        with pytest.raises(BadImage, match="not a regular file"):
            open_image(str(tmp_path / kind))
    assert opened == []


def test_a_file_that_is_swapped_for_a_fifo_when_it_is_opened_is_refused_without_waiting(tmp_path, monkeypatch):
    path, real = tmp_path / "a.jpg", os.open
    path.write_bytes(JPEG)

    def swap(name, *rest):
        kinds()["FIFO"](path)
        return real(name, *rest)

    monkeypatch.setattr("os.open", swap)
    with pytest.raises(BadImage, match="not a regular file"):
        open_image(str(path))


def children():
    """Processes that this one has started, by what they run."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            found[int(pid)] = Path(f"/proc/{pid}/cmdline").read_text()
    return {pid: command for pid, command in found.items() if "amcl_fast.data" in command}


def test_the_reader_is_started_again_and_reads_the_same(make_images):
    images = make_images(128)

    def batches(killing):
        data = ContrastiveLoader(images, [Augmentation()] * 2, Output(size=8, batch_size=8), seed=3)
        for number, (views, labels) in enumerate(islice(iter(data), 12)):
            if number in killing:
                # None, if the one before was killed and what it had read is not used up.
                for reader in children().keys() - others:
                    os.kill(reader, signal.SIGKILL)
                    killed.append(number)
            yield [view.clone() for view in views], labels

    gc.collect()  # loaders of tests before, which their errors hold
    complaints().heard()  # the first loader starts this process, which stays; it is there when it has answered
    others, killed = children().keys(), []
    expected = list(batches(()))
    assert children().keys() == others  # a loader's processes go with it
    ours = list(batches((0, 4, 5)))
    assert killed[:2] == [0, 4]
    for (views, labels), (other_views, other_labels) in zip(ours, expected, strict=True):
        assert torch.equal(labels, other_labels)
        assert all(torch.equal(a, b) for a, b in zip(views, other_views, strict=True))


def test_the_reader_outlives_signals_and_ends_with_its_user(tmp_path):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    script = f"""
import os, signal, sys
from amcl_fast.data.reading.reader import Reader
reader = Reader()
reader.read([{str(tmp_path / "a.jpg")!r}])
print(reader._worker._process.pid, flush=True)
sys.stdin.read()
"""
    user = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    pid = int(user.stdout.readline())
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        os.kill(pid, signum)
    time.sleep(0.2)
    assert "amcl_fast.data.reading.reader_process" in Path(f"/proc/{pid}/cmdline").read_text()
    user.kill()
    user.communicate()
    until = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split(") ")[1][:1]:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_long_lists_do_not_block_two_processes_that_wait_for_each_other(tmp_path):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    reader = Reader()
    for _ in range(2):
        reader.request([str(tmp_path / "a.jpg")] * 20_000 + [str(tmp_path / ("long" * 60))] * 5000)
    for _ in range(2):
        encoded = reader.take()
        assert len(encoded.bad) == 5000
        assert all(image.tobytes() == JPEG for image in encoded.images[:20_000])
    reader.close()


def test_a_limit_on_files_does_not_end_the_reader(make_images):
    loaders = [ContrastiveLoader(make_images(16), [Augmentation()], Output(size=8, batch_size=8)) for _ in range(2)]
    list(loaders[0])  # DALI writes a file of its own before its first pipeline
    with no_room(1000):
        assert len(list(loaders[1])) == 2

"""amcl_fast.data.shards.pack: stopped, killed, without room or beside another, it leaves the same bytes."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

from amcl_fast.cli import main
from amcl_fast.data.shards import pack as packing
from amcl_fast.data.shards.pack import pack
from amcl_fast.runs.files import partial_name
from amcl_fast.runs.lock import RunInUseError
from tests.helpers.command_line import environment
from tests.helpers.folders import content, folder_of


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_what_was_interrupted_goes_on_to_the_same_bytes(source, tmp_path, stop):
    # So much is left after the first shard that the signal comes in time.
    for image in range(300):
        (source / "train" / "ant" / f"m{image}.jpg").hardlink_to(source / "train" / "ant" / f"ta{image % 20}.jpg")
    options = ["--shorter_side", "40", "--shard_size", "4", "--workers", "1"]
    assert main(["pack", str(source), str(tmp_path / "whole"), *options]) == 0
    command = [sys.executable, "-m", "amcl_fast.cli", "pack", str(source), str(tmp_path / "target"), *options]
    with subprocess.Popen(command, env=environment(tmp_path), stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        while not list((tmp_path / "target").glob("*.tar")) and time.monotonic() < until:
            time.sleep(0.001)
        process.send_signal(stop)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if stop == signal.SIGINT else -stop)  # it was not through
    if stop == signal.SIGINT:
        assert (
            errors
            == "amcl-fast pack: stopped before its end: the shards that are whole stay; go on with the same command\n"
        )
        assert not list((tmp_path / "target").glob("*.partial"))
    whole = content(tmp_path / "whole")
    for name, data in content(tmp_path / "target").items():
        assert name in ("manifest.json", ".lock") or name.endswith(".partial") or data == whole[name]
    assert main(["pack", str(source), str(tmp_path / "target"), *options]) == 0
    assert content(tmp_path / "target") == whole


@pytest.mark.parametrize("after", range(1, 8))
def test_it_goes_on_from_any_shard(source, tmp_path, monkeypatch, after):
    options = {"shard_size": 7, "shorter_side": 40, "workers": 1}
    pack(source, tmp_path / "whole", **options)
    finish, done = packing.Writer.finish, []

    def full(writer):
        if len(done) == after:
            raise OSError(errno.ENOSPC, "No space left on device", "x.tar")
        done.append(finish(writer))
        return done[-1]

    monkeypatch.setattr(packing.Writer, "finish", full)
    with pytest.raises(OSError, match="No space"):
        pack(source, tmp_path / "target", **options)
    monkeypatch.undo()
    assert len(list((tmp_path / "target").glob("*.tar"))) == after
    assert not list((tmp_path / "target").glob("*.partial"))
    victim = tmp_path / "target" / "train-000000.tar"
    if after == 3:
        victim.unlink()
    if after == 4:
        os.truncate(victim, 100)
    pack(source, tmp_path / "target", **options)
    assert content(tmp_path / "target") == content(tmp_path / "whole")


def test_what_a_killed_one_left_is_gone_before_the_first_shard(source, tmp_path, monkeypatch):
    (tmp_path / "target").mkdir()
    partial_name(tmp_path / "target" / "train-000007.tar").write_bytes(b"half")
    begin, left = packing._write_part, []

    def look(folder, *rest):
        left.append(list(folder.glob("*.partial")))
        begin(folder, *rest)

    monkeypatch.setattr(packing, "_write_part", look)
    pack(source, tmp_path / "target", workers=1)
    assert left and not any(left)


def test_a_full_disk_is_one_line(source, tmp_path, monkeypatch, capsys):
    def full(writer, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(writer._new.path))

    monkeypatch.setattr(packing.Writer, "_write", full)
    assert main(["pack", str(source), str(tmp_path / "target"), "--workers", "1"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "No space left" in error and "the same command goes on" in error
    assert not list((tmp_path / "target").glob("*.partial"))


def test_what_another_process_has_packed_in_the_meantime_is_seen(tmp_path, monkeypatch):
    first, other = folder_of(tmp_path / "first", ("cat", "dog")), folder_of(tmp_path / "other", ("apple", "pear"))

    alone = packing._alone

    def after_another(folder):
        monkeypatch.undo()
        pack(other, folder, workers=1)
        return alone(folder)

    monkeypatch.setattr(packing, "_alone", after_another)
    with pytest.raises(ValueError, match="the classes had other names"):
        pack(first, tmp_path / "target", workers=1)
    assert (tmp_path / "target" / "classes.txt").read_text() == "apple\npear\n"


def test_two_at_once_are_told(source, tmp_path):
    (tmp_path / "target").mkdir()
    in_use = rf"target is in use: process {os.getpid()} on \S+ packs there$"
    with packing._alone(tmp_path / "target"), pytest.raises(RunInUseError, match=in_use):
        pack(source, tmp_path / "target")
    pack(source, tmp_path / "target", workers=1)
    assert not list((tmp_path / "target").glob(".*"))


def test_two_are_kept_apart_where_folders_cannot_be_locked(source, tmp_path, monkeypatch):
    """As on NFS, which locks what is open for writing alone."""
    flock = fcntl.flock

    def of_files(descriptor, operation):
        if not fcntl.fcntl(descriptor, fcntl.F_GETFL) & (os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", of_files)
    (tmp_path / "target").mkdir()
    with packing._alone(tmp_path / "target"), pytest.raises(RunInUseError, match="packs there"):
        pack(source, tmp_path / "target")

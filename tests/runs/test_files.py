"""amcl_fast.runs.files, amcl_fast.terminal: all of a write or nothing, what waits for room, output that cannot fail."""

import io
import os
import sys

import pytest

from amcl_fast.runs.files import Unwritten, append_whole, write_file
from amcl_fast.terminal import lasting_output
from tests.helpers.disk import no_room


def test_what_does_not_fit_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "log"
    append_whole(path, b"a" * 5000)
    with no_room(6000):
        for write in (append_whole, write_file):
            with pytest.raises(OSError, match="File too large") as found:
                write(path, b"b" * 7000)
            assert str(path) in str(found.value)
        assert path.read_bytes() == b"a" * 5000
    append_whole(path, b"b")
    assert path.read_bytes() == b"a" * 5000 + b"b" and os.listdir(tmp_path) == ["log"]


def test_what_waits_is_told_once_an_outage_and_written_later(tmp_path):
    files = Unwritten()

    def write(folder, *texts):
        for text in texts:
            files.write("log", lambda: write_file(folder / "log", text))  # noqa: B023
        files.retry()

    for number in (1, 2):
        folder = tmp_path / f"folder{number}"
        with pytest.warns(UserWarning, match=r"log cannot be written \(.*No such file") as told:
            write(folder, "one", "two")
        assert len(told) == 1
        folder.mkdir()
        files.retry()
        assert (folder / "log").read_text() == "two"


class Lost(io.StringIO):
    def write(self, text):
        raise OSError(5, "Input/output error")


def test_output_that_nobody_gets_is_no_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Lost())
    monkeypatch.setattr(sys, "stderr", closed := io.StringIO())
    closed.close()
    with lasting_output():
        for stream in (sys.stdout, sys.stderr):
            assert not stream.isatty()
            print("text", file=stream, flush=True)
            stream.writelines(["more"])
            assert stream.encoding == "utf-8" or stream.encoding is None
    assert isinstance(sys.stdout, Lost)


def test_what_a_terminal_cannot_show_is_written_otherwise(monkeypatch):
    plain = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", plain)
    with lasting_output():
        print("caf\u00e9")
        print("more", flush=True)
    assert plain.buffer.getvalue() == b"caf\\xe9\nmore\n"

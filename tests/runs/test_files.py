"""amcl_fast.runs.files: all of a write or nothing, no link followed, what waits for room; output that cannot fail."""

import errno
import fcntl
import io
import os
import signal
import subprocess
import sys

import pytest

from amcl_fast.runs import files as module
from amcl_fast.runs.files import NewFile, Unwritten, copy_file, partial_name, remove_partial, write_file
from amcl_fast.runs.in_place import append_whole
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


@pytest.mark.parametrize(
    "content",
    ["café", "café".encode(), [b"caf", memoryview("é".encode())], lambda file: file.write("café".encode())],
    ids=["text", "bytes", "pieces", "function"],
)
@pytest.mark.parametrize("durable", [False, True])
def test_content_of_every_kind_replaces_the_file(tmp_path, content, durable):
    path = tmp_path / "file"
    path.write_text("old")
    write_file(path, content, durable=durable)
    assert path.read_text() == "café" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(5, "Input/output error"), ValueError("no")])
def test_what_is_broken_off_leaves_nothing(tmp_path, error):
    (tmp_path / "file").write_text("old")

    def write(file):
        file.write(b"half")
        raise error

    with pytest.raises(error if isinstance(error, type) else type(error)) as found:
        write_file(tmp_path / "file", write)
    assert (tmp_path / "file").read_text() == "old" and os.listdir(tmp_path) == ["file"]
    if isinstance(error, OSError):
        assert found.value.filename == str(tmp_path / "file")


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    first, second = NewFile(tmp_path / "file"), NewFile(tmp_path / "file")
    first.write(b"first")
    second.write(b"second")
    first.finish()
    assert (tmp_path / "file").read_bytes() == b"first"
    second.finish()
    assert (tmp_path / "file").read_bytes() == b"second" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("links", [True, False])
def test_what_is_there_may_stay(tmp_path, monkeypatch, links):
    path = tmp_path / "file"
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "Operation not permitted")))
    write_file(path, "first", replace=False)
    write_file(path, "second", replace=False)
    assert path.read_text() == ("first" if links else "second") and os.listdir(tmp_path) == ["file"]


def test_no_link_is_followed(tmp_path, monkeypatch):
    """Neither at the place itself nor at the name that a file has until it is whole, should somebody foretell it."""
    theirs, path = tmp_path / "theirs", tmp_path / "file"
    theirs.write_text("untouched")
    path.symlink_to(theirs)
    write_file(path, "new")
    assert not path.is_symlink() and path.read_text() == "new"
    path.unlink()
    path.symlink_to(theirs)
    write_file(tmp_path / "source", "new")
    copy_file(tmp_path / "source", path)
    assert not path.is_symlink() and path.read_text() == "new"
    monkeypatch.setattr(module.secrets, "token_hex", lambda _: "foretold")
    (tmp_path / "file.foretold.partial").symlink_to(theirs)
    for write in (write_file, lambda path, content: copy_file(theirs, path)):
        with pytest.raises(FileExistsError, match=str(path)):
            write(path, "newer")
    assert theirs.read_text() == "untouched" and path.read_text() == "new"


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_are_as_open_to_others_as_any(tmp_path, mask):
    usual = os.umask(mask)
    try:
        write_file(tmp_path / "file", "")
    finally:
        os.umask(usual)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_name_may_be_as_long_as_the_file_system_has_it(tmp_path):
    path = tmp_path / ("é" * 127)
    write_file(path, "text")
    assert path.read_text() == "text"


@pytest.mark.parametrize("link", [True, False])
def test_a_copy_outlives_the_replacing_of_its_source(tmp_path, link):
    source, path = tmp_path / "last", tmp_path / "kept"
    for text in ("one", "two"):
        write_file(source, text)
        copy_file(source, path, link=link)
        copy_file(source, path, link=link)  # two names of one file by now
        assert os.path.samefile(source, path) == link
    write_file(source, "three")
    assert path.read_text() == "two" and sorted(os.listdir(tmp_path)) == ["kept", "last"]


def test_what_killed_writers_left_is_removed(tmp_path):
    partial_name(tmp_path / "file").touch()
    (tmp_path / "file").touch()
    remove_partial(tmp_path, tmp_path / "nowhere")
    assert os.listdir(tmp_path) == ["file"]


def killed_writer(path):
    """A process that is killed while it writes a file."""
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom amcl_fast.runs.files import NewFile\n"
        "NewFile(Path(sys.argv[1])).write(b'half')\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -signal.SIGKILL


def test_killed_writers_leave_one_file_at_the_most_and_none_beside_a_whole_one(tmp_path):
    path = tmp_path / ("file [1]*" * 7)  # longer than what a partial file has of its name
    others = {tmp_path / "file.old.partial", partial_name(tmp_path / "file")}  # of the user, and of another file
    for other in others:
        other.touch()
    for _ in range(3):
        killed_writer(path)
        assert len({*tmp_path.iterdir()} - others) == 1
    write_file(path, "whole")
    assert {*tmp_path.iterdir()} == {*others, path} and path.read_text() == "whole"


@pytest.mark.parametrize("link", [True, False])
def test_a_name_that_was_half_a_file_of_its_own_leaves_nothing_either(tmp_path, link):
    """As a checkpoint has it, which Lightning writes to what is renamed in the end; a copy is a writer too."""
    killed_writer(partial_name(tmp_path / "last"))
    (tmp_path / "source").write_text("whole")
    copy_file(tmp_path / "source", tmp_path / "last", link=link)
    assert sorted(os.listdir(tmp_path)) == ["last", "source"]


def test_what_another_one_writes_is_not_removed(tmp_path, monkeypatch):
    path, put = tmp_path / "file", os.replace
    whole = []

    def replace(partial, place):
        """Another one writes the same, between the last byte and the renaming."""
        if not whole:
            whole.append(partial)
            write_file(path, "other")
        put(partial, place)

    monkeypatch.setattr(os, "replace", replace)
    with NewFile(path) as file:
        file.write(b"first")
        write_file(path, "second")
        assert path.read_text() == "second"
        whole.clear()
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["file"]


def test_a_file_that_is_taken_for_one_that_was_left_is_made_again(tmp_path, monkeypatch):
    """Another one looks at it before it is locked."""
    flock, seen = fcntl.flock, []

    def looked_at(descriptor, operation):
        if not seen:
            seen.extend(tmp_path.iterdir())
            seen[0].unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", looked_at)
    write_file(tmp_path / "file", "whole")
    assert seen and os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "whole"


def test_where_nothing_can_be_locked_nothing_is_removed(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    (left := partial_name(tmp_path / "file")).touch()
    write_file(tmp_path / "file", "whole")
    assert {*tmp_path.iterdir()} == {left, tmp_path / "file"}


def test_links_among_what_was_left_are_removed_not_followed(tmp_path):
    theirs, folder = tmp_path / "theirs", tmp_path / "folder"
    theirs.write_text("untouched")
    folder.mkdir()
    for target in (theirs, tmp_path / "nowhere", folder):
        partial_name(folder / "file").symlink_to(target)
    os.mkfifo(pipe := partial_name(folder / "file"))
    write_file(folder / "file", "whole")
    assert theirs.read_text() == "untouched" and {*folder.iterdir()} == {folder / "file", pipe}
    assert not (tmp_path / "nowhere").exists()


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

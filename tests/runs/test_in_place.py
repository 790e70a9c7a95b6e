"""amcl_fast.runs.in_place: what is written where it lies, and folders below one of ours; no link leads elsewhere."""

import os
import pickle
import re

import pytest

from amcl_fast.runs.files import partial_name, remove_partial
from amcl_fast.runs.in_place import PlaceError, append_whole, make_within, new_folder, open_in_place, refuse_links
from amcl_fast.runs.lock import RunLock, locked


def content(folder):
    """Of every file below, links included."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def theirs(tmp_path):
    """A folder of somebody's with a file in it, which stay as they are."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").write_text("untouched")
    yield tmp_path / "theirs"
    assert content(tmp_path / "theirs") == {tmp_path / "theirs" / "file": b"untouched"}


def lock(path):
    with RunLock() as own:
        own.acquire(path.parent)


def wait(path):
    with locked(path):
        pass


@pytest.mark.parametrize("write", [lambda path: append_whole(path, b"more"), lock, wait])
def test_nothing_but_a_file_is_written_in_place(tmp_path, theirs, write):
    path = tmp_path / ".lock"
    for target in (theirs / "file", tmp_path / "nowhere", theirs, path):
        path.symlink_to(target)
        message = f"{path} is a link to {target}, and nothing is written through it: remove it"
        with pytest.raises(PlaceError, match=f"^{re.escape(message)}$") as found:
            write(path)
        assert str(pickle.loads(pickle.dumps(found.value))) == message  # of another process
        path.unlink()
    os.mkfifo(path)
    with pytest.raises(PlaceError, match=rf"^{path} is no regular file, and nothing is written through it: remove it$"):
        write(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match=r"Is a directory.*\.lock"):
        write(path)
    assert {*tmp_path.iterdir()} == {theirs, path}


@pytest.mark.parametrize("replaced", [0, 3])
def test_a_second_name_of_a_file_keeps_what_it_has(tmp_path, replaced):
    """As a backup of hard links has it, or somebody who would have a file of ours emptied."""
    log, kept = tmp_path / "log", tmp_path / "kept"
    log.write_text("one\ntwo")
    kept.hardlink_to(log)
    append_whole(log, b"more", instead_of=replaced)
    assert (log.read_text(), kept.read_text()) == ("one\ntwo"[: 7 - replaced] + "more", "one\ntwo")
    append_whole(log, b"!")
    assert log.read_text().endswith("more!") and {*tmp_path.iterdir()} == {log, kept}


@pytest.mark.parametrize("take", [lock, wait])
def test_a_lock_with_a_second_name_locks_and_is_not_emptied(tmp_path, take):
    (tmp_path / "thesis").write_text("untouched")
    (tmp_path / ".lock").hardlink_to(tmp_path / "thesis")
    take(tmp_path / ".lock")
    assert (tmp_path / "thesis").read_text() == "untouched"


def test_folders_are_made_below_a_folder_that_may_be_a_link(tmp_path, theirs):
    (tmp_path / "scratch").mkdir()
    run = tmp_path / "run"
    run.symlink_to("scratch")
    for _ in range(2):
        assert make_within(run, run / "deep" / "report") == run / "deep" / "report"
    assert (tmp_path / "scratch" / "deep" / "report").is_dir() and make_within(run, run) == run
    for name, below in (("report", ""), ("deep/other", "below")):
        (run / name).symlink_to(theirs)
        with pytest.raises(PlaceError, match=rf"^{run / name} is a link to {theirs}, and nothing is"):
            make_within(run, run / name / below)
    with pytest.raises(PlaceError):
        refuse_links(run / "nothing", run / "report")
    (run / "file").touch()
    with pytest.raises(FileExistsError, match="run/file"):
        make_within(run, run / "file" / "below")
    with pytest.raises(FileNotFoundError):  # of a run directory that is gone
        make_within(tmp_path / "gone", tmp_path / "gone" / "report")


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path, theirs):
    path = tmp_path / "images"
    left = partial_name(path)
    left.mkdir()
    (left / "half").touch()
    planted = partial_name(path)
    planted.symlink_to(theirs)
    (tmp_path / ".images.partial").symlink_to(theirs)  # as earlier versions named it
    with pytest.raises(FileNotFoundError), new_folder(path) as folder:
        (folder / "no" / "file").touch()
    assert not path.exists() and not left.exists() and not folder.exists()
    with new_folder(path) as folder:
        (folder / "file").touch()
    assert [found.name for found in path.iterdir()] == ["file"]
    (tmp_path / "other").symlink_to("nowhere")
    with pytest.raises(PlaceError), new_folder(tmp_path / "other"):
        pass


def test_only_what_our_writers_leave_is_removed(tmp_path):
    (tmp_path / "film.partial").touch()
    partial_name(tmp_path / "file").touch()
    remove_partial(tmp_path)
    assert os.listdir(tmp_path) == ["film.partial"]


def test_a_file_that_is_written_in_place_is_as_open_to_others_as_any(tmp_path):
    os.close(open_in_place(tmp_path / "file"))
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~_mask()


def _mask():
    mask = os.umask(0)
    os.umask(mask)
    return mask

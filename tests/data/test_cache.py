import os
from pathlib import Path

import pytest
from PIL import Image

from amcl_fast import home
from amcl_fast.data.cache import cache_folder, write_whole
from amcl_fast.data.scan.classes import scan_classes
from amcl_fast.data.sources.builtin import prepare_builtin


def test_the_environment_chooses_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("AMCL_FAST_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("AMCL_FAST_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "amcl_fast"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative, which the specification has ignored")
    assert cache_folder() == tmp_path / ".cache" / "amcl_fast"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert cache_folder() == tmp_path / "shared" / "amcl_fast"
    monkeypatch.setenv("AMCL_FAST_CACHE", "~/own")
    assert cache_folder() == tmp_path / "own"


def test_without_a_home_that_can_be_written_there_is_a_cache_of_the_users_own(tmp_path, monkeypatch):
    for name in ("AMCL_FAST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "file").write_text("where a folder cannot be")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    home._temporary.cache_clear()
    own = tmp_path / f"amcl_fast-{os.getuid()}"
    assert cache_folder() == own and own.stat().st_mode & 0o077 == 0
    for name in ("MPLCONFIGDIR", "TRITON_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    home.spare_home()
    assert os.environ["MPLCONFIGDIR"] == str(own / "mplconfigdir")
    assert os.environ["TRITON_CACHE_DIR"] == str(own / "triton_cache_dir")
    home._temporary.cache_clear()
    own.chmod(0o777)  # anybody's, who may put programs there
    assert cache_folder().parent == tmp_path and cache_folder() != own
    home._temporary.cache_clear()


def test_programs_of_somebody_else_are_not_run(tmp_path, monkeypatch):
    """torch.compile keeps them where everybody may write, under the user's name."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("getpass.getuser", lambda: "ann")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    usual = tmp_path / "torchinductor_ann"
    home.spare_home()
    usual.mkdir()
    home.spare_home()
    assert name not in os.environ
    usual.chmod(0o777)
    home.spare_home()
    assert os.environ.pop(name) == str(tmp_path / "cache" / "amcl_fast" / "torchinductor")
    usual.rmdir()
    usual.symlink_to(tmp_path)
    home.spare_home()
    assert os.environ.pop(name).endswith("torchinductor")


def test_a_home_that_can_be_written_is_left_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("MPLCONFIGDIR", "TRITON_CACHE_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    home.spare_home()
    assert not {"MPLCONFIGDIR", "TRITON_CACHE_DIR"} & os.environ.keys() and not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_told_once_and_says_what_helps(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("AMCL_FAST_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").write_text("where the folder should be")
    for number in range(2):
        scan_part(tmp_path / f"part {number}")
    (line,) = (record.message for record in caplog.records)
    told = f"cannot be kept in {tmp_path}/file (Not a directory): every run looks again; AMCL_FAST_CACHE names another "
    assert told in line
    with pytest.raises(OSError, match=r"file/datasets cannot be written \(Not a directory\): AMCL_FAST_CACHE names an"):
        prepare_builtin()


def scan_part(folder):
    for name in "ab":
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / name / "0.png")
    scan_classes(folder)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "deep" / "file"
    write_whole(target, b"first")

    def no_space(*paths):
        raise OSError("no space")

    monkeypatch.setattr("os.replace", no_space)
    with pytest.raises(OSError, match="no space"):
        write_whole(target, b"second")
    assert target.read_bytes() == b"first"
    assert list(Path(target.parent).iterdir()) == [target]

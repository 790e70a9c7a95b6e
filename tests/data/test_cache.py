import os
from pathlib import Path

import pytest

from amcl_fast.data.cache import cache_folder, write_whole


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


def test_a_user_without_a_home_has_a_cache_all_the_same(tmp_path, monkeypatch):
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("AMCL_FAST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cache_folder() == tmp_path / f"amcl_fast-{os.getuid()}"


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

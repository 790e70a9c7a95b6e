from pathlib import Path

import pytest

from amcl_fast.data.cache import cache_folder, write_whole


def test_the_environment_chooses_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("AMCL_FAST_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("AMCL_FAST_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "amcl_fast"


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

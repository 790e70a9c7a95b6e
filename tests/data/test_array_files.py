"""amcl_fast.data.array_files: arrays in a file, of which nothing is believed that is damaged."""

import os

import numpy as np
import pytest

from amcl_fast.data import array_files

ARRAYS = {"long": np.arange(1000), "bytes": np.frombuffer(b"some names\0", np.uint8), "none": np.empty(0, np.int32)}
HEADER = {"kind": "of a test", "names": ["ü", "\udcff"], "number": 3}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "arrays"
    path.write_bytes(b"".join(array_files.encode(HEADER, ARRAYS).pieces))
    return path


def test_what_was_written_is_mapped(file):
    header, arrays = array_files.read(file)
    assert header == HEADER and arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype and np.array_equal(arrays[name], array)
    file.unlink()  # what is mapped stays
    assert arrays["long"].sum() == 499_500
    with pytest.raises(ValueError, match="read-only"):
        arrays["long"][0] = 1


def test_no_damage_is_believed(file):
    content = file.read_bytes()
    random = np.random.default_rng(0)
    for place in [0, 20, 60, 61, len(content) - 1, *random.integers(0, len(content), 300).tolist()]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(random.integers(8))
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="no file of arrays"):
            array_files.read(file)
    for length in [0, 1, 50, 70, *random.integers(0, len(content), 30).tolist()]:
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match="no file of arrays"):
            array_files.read(file)
    file.write_bytes(content + b"more")
    with pytest.raises(ValueError, match="or damaged"):
        array_files.read(file)


@pytest.mark.parametrize(
    "text",
    [
        b"no JSON",
        b"[1, 2]",
        b'[{}, {"a": ["|O", 0, 1]}]',
        b'[{}, {"a": ["<i8", 0, 100000]}]',
        b'[{}, {"a": ["<i8", -800, 2]}]',
        b'[{}, {"a": ["<i8", 0, -2]}]',
        b'[{}, {"a": [null, 0, 1]}]',
        b'[{}, ["a"]]',
        b'{"a": 1}',
    ],
)
def test_a_whole_file_of_nonsense_is_refused(file, text):
    body = len(text).to_bytes(8, "little") + text + bytes(64)
    file.write_bytes(array_files._MAGIC + array_files._digest([body]) + body)
    with pytest.raises(ValueError, match="no file of arrays"):
        array_files.read(file)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match="no file of arrays"):
        array_files.read(tmp_path / "pipe")
    for name in ("loop", "missing"):
        with pytest.raises(OSError, match=name):
            array_files.read(tmp_path / name)
    with pytest.raises((OSError, ValueError)):
        array_files.read(tmp_path)

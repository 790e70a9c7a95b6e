"""amcl_fast.data.reading.contents: members of tars, read where they lie."""

import os
import re
import tarfile

import pytest

from amcl_fast.data.locations import member
from amcl_fast.data.reading.contents import CHANGED, Contents
from amcl_fast.data.reading.reader import Reader
from amcl_fast.data.scan.headers import BadImage
from amcl_fast.data.sources.find import find_images
from tests.helpers.small_shards import picture, samples


def test_members_are_read_and_what_has_changed_is_told(make_shards, tmp_path):
    root = make_shards({"a.tar": samples(range(4)), "b.tar": samples(range(4, 8))})
    files = list(find_images(root).train.files)
    reader = Reader()
    assert [image.tobytes() for image in reader.read(files).images] == [picture(number) for number in range(8)]
    content = (root / "a.tar").read_bytes()
    third = member(files[2])
    with open(root / "a.tar", "r+b") as file:  # under the open descriptor
        file.truncate(third.offset + 5)
        file.seek(member(files[1]).offset - 512)
        file.write(bytes(512))
    read = reader.read(files)
    assert read.bad == {1: CHANGED, 2: "truncated: the tar ends within it", 3: "truncated: the tar ends before it"}
    reader.close()
    (root / "a.tar").write_bytes(b"".join([bytes(512), content]))
    (root / "b.tar").unlink()
    read = reader.read(files)
    assert read.bad == {**dict.fromkeys(range(4), CHANGED), **dict.fromkeys(range(4, 8), "no such file")}
    reader.close()


def test_tars_stay_open_but_not_all(make_shards, monkeypatch):
    root = make_shards({f"{number}.tar": samples([number]) for number in range(8)})
    files = [os.fsencode(path) for path in find_images(root).train.files]
    monkeypatch.setattr("amcl_fast.data.reading.contents._MOST_OPEN", 3)
    before = len(os.listdir("/proc/self/fd"))
    some = Contents()
    room = bytearray(10_000)
    for path in files * 2:
        assert some.read(path, lambda size: memoryview(room)[:size]) > 0
    assert len(os.listdir("/proc/self/fd")) == before + 3
    os.mkfifo(root / "pipe.tar")
    with pytest.raises(BadImage, match="not a regular file"):
        some.read(re.sub(rb"/\d\.tar", b"/pipe.tar", files[0]), lambda size: memoryview(room)[:size])
    assert len(os.listdir("/proc/self/fd")) <= before + 3


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_another_image_of_the_same_size_is_no_substitute(make_shards, form):
    names = [
        "a.png",
        "x" * 90 + "/" + "y" * 40 + ".png",
        *(["z" * 300 + ".png", "ü.png"] if form != tarfile.USTAR_FORMAT else []),
    ]
    root = make_shards({"0.tar": [(name, picture(1)) for name in names]}, form=form)
    files = list(find_images(root).train.files)
    assert [member(location).name for location in files] == names
    reader = Reader()
    assert not reader.read(files).bad
    reader.close()
    make_shards({"0.tar": [(name[:-6] + "b.png", picture(2)) for name in names]}, form=form)
    assert reader.read(files).bad == dict.fromkeys(range(len(names)), CHANGED)
    reader.close()

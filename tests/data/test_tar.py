"""amcl_fast.data.shards.tar: what Python's own reader finds, cut and damaged tars told."""

import io
import os
import subprocess
import tarfile
from contextlib import suppress

import pytest

from amcl_fast.data.shards.tar import BLOCK, Entry, TarError, compression, entries

LONG = "a/" * 60 + "b" * 150 + ".jpg"
NAMES = ["a.jpg", "n01/b c.cls", "x" * 90 + "/" + "y" * 90 + ".jpg", "z" * 100, LONG]
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def packed(form="pax", names=NAMES, links=False):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=FORMATS[form]) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 300 * number
            tar.addfile(info, io.BytesIO(bytes([65 + number]) * info.size))
        if links:
            link = tarfile.TarInfo("link.jpg")
            link.type, link.linkname = tarfile.SYMTYPE, LONG
            tar.addfile(link)
            info = tarfile.TarInfo("after.jpg")
            tar.addfile(info)
    return file.getvalue()


def found(content):
    return list(entries(lambda at, count: content[at : at + count], len(content)))


def expected(content):
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return [Entry(os.fsencode(info.name), info.offset_data, info.size) for info in tar.getmembers() if info.isreg()]


@pytest.mark.parametrize("form", FORMATS)
def test_files_are_found_where_python_finds_them(form):
    content = packed(form, NAMES if form != "ustar" else NAMES[:-1])
    assert found(content) == expected(content)


def test_names_beyond_ascii_and_what_is_no_file():
    for form in ("gnu", "pax"):
        content = packed(form, ["ünï/ä.jpg", "ö" * 80 + ".png", "odd\udcff.jpg"], links=True)
        *files, link, after = found(content)
        assert files == expected(content)[:-1]
        assert (link.name, link.problem) == (b"link.jpg", "a link within the tar")
        assert after == expected(content)[-1]


@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_tars_of_gnu_tar(tmp_path, form):
    (tmp_path / "i" / "deep").mkdir(parents=True)
    names = ["i/a.jpg", "i/deep/b.jpg", *(["i/" + "n" * 120 + ".jpg"] if form in ("gnu", "posix", "oldgnu") else [])]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(b"x" * 1000 * number)
    with (tmp_path / "i" / "hole.jpg").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    command = ["tar", f"--format={form}", *(["-S"] if form in ("gnu", "posix") else []), "-cf", "o.tar", "i"]
    subprocess.run(command, cwd=tmp_path, check=True)
    content = (tmp_path / "o.tar").read_bytes()
    ours = {entry.name.decode(): entry for entry in found(content)}
    sparse = [name for name, entry in ours.items() if entry.problem]
    assert bool(sparse) is (form in ("gnu", "posix"))
    assert all("hole" in name and "sparse" in ours[name].problem for name in sparse)
    assert {(e.name, e.offset, e.size) for e in ours.values() if not e.problem} >= {
        (e.name, e.offset, e.size) for e in expected(content) if b"hole" not in e.name
    }


def test_numbers_for_which_octal_has_no_room():
    info = tarfile.TarInfo("huge.jpg")
    info.size = 1 << 35
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        (entry,) = found(info.tobuf(form))
        assert (entry.size, entry.problem) == (1 << 35, "truncated: the tar ends within it")


def test_a_cut_tar_gives_what_is_before_the_cut():
    content = packed("gnu")
    whole = expected(content)
    for cut in range(0, len(content) - 10 * BLOCK, 100):
        some, problem = [], None
        try:
            for entry in entries(lambda at, count, end=cut: content[:end][at : at + count], cut):
                some.append(entry)
        except TarError as error:
            problem = str(error)
        good = [entry for entry in some if not entry.problem]
        assert good == [entry for entry in whole if entry.offset + entry.size <= cut][: len(good)]
        assert len(some) - len(good) <= 1
        assert len(good) >= sum(entry.offset + entry.size + 2 * BLOCK <= cut for entry in whole) - 1
        if cut % BLOCK and not any(entry.problem for entry in some):
            assert problem is None or "no header at byte" in problem


def test_damage_is_told_where_it_is():
    content = bytearray(packed("ustar", NAMES[:3]))
    third = expected(bytes(content))[2].offset - BLOCK
    content[third + 5] ^= 1
    with pytest.raises(TarError, match=f"no header at byte {third:,}"):
        found(bytes(content))
    for at in range(0, len(content), 7):  # nothing but a TarError, whatever is damaged
        damaged = bytearray(packed("pax", NAMES))
        damaged[at % len(damaged)] ^= 0x55
        with suppress(TarError):
            found(bytes(damaged))


def test_nothing_and_zeros_hold_no_file():
    assert found(b"") == found(bytes(10_240)) == []


def test_what_is_compressed_is_known():
    import bz2
    import gzip
    import lzma

    assert [compression(pack(b"content")) for pack in (gzip.compress, bz2.compress, lzma.compress)] == [
        "gzip", "bzip2", "xz",
    ]  # fmt: skip
    assert compression(packed()) is None

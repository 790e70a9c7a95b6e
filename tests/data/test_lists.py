"""Lists of files: what a line may say, and what is told of one that cannot be understood."""

import os
import time
import tracemalloc
from pathlib import Path

import pytest

from amcl_fast.data.sources import lists
from amcl_fast.data.sources.find import find_images
from amcl_fast.data.sources.lists import read_lines


@pytest.fixture
def write(tmp_path, make_folder):
    make_folder("i", 3)

    def write(text, name="list.txt", encoding="utf-8"):
        (tmp_path / name).write_bytes(text.encode(encoding))
        return tmp_path / name

    return write


def said(file):
    listed = read_lines(str(file))
    labels = (listed.names[label] for label in listed.labels)
    return list(zip((os.path.relpath(path, file.parent) for path in listed.paths), labels, strict=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.jpg\nb/c d.png\n", [("a.jpg", ""), ("b/c d.png", "")]),
        ("a.jpg 3\nb c.png  10\n", [("a.jpg", "3"), ("b c.png", "10")]),
        ("a.jpg 3\nb c.png\n", [("a.jpg 3", ""), ("b c.png", "")]),  # not all lines have one
        ("a 3\nb 4\n", [("a 3", ""), ("b 4", "")]),  # no ending: it may be the name
        ("a.jpg\tant\nb 1.png\tbig bee\n", [("a.jpg", "ant"), ("b 1.png", "big bee")]),
        ("a.jpg\t1\nb.jpg\n", [("a.jpg", "1"), ("b.jpg", "")]),
        ("\ufeff# a comment\r\n\r\n  a.jpg  \r\n./#b.jpg\r\n", [("a.jpg", ""), ("#b.jpg", "")]),
        ("x/../a.jpg\n//b.jpg\n", [("a.jpg", ""), ("/b.jpg", "")]),
        ("a.jpg", [("a.jpg", "")]),
    ],
)
def test_lines(write, text, expected):
    file = write(text)
    assert said(file) == [
        (os.path.relpath(path, file.parent) if path[0] == "/" else path, label) for path, label in expected
    ]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("l.csv", "path,label\na.jpg,3\nb.jpg,\n", [("a.jpg", "3"), ("b.jpg", "")]),
        ("l.csv", "a.jpg,ant\nb.jpg,bee\n", [("a.jpg", "ant"), ("b.jpg", "bee")]),
        ("l.csv", "a.jpg\nb.jpg\n", [("a.jpg", ""), ("b.jpg", "")]),
        ("l.csv", 'id,Class,Filename\r\n7,"a, b","x, ""y"".jpg"\r\n', [('x, "y".jpg', "a, b")]),
        ("l.csv", "file_name,split\na.jpg,train\n", [("a.jpg", "")]),
        ("l.tsv", "image\tlabel\na b.jpg\tbig ant\n", [("a b.jpg", "big ant")]),
        ("l.CSV", "\ufeffpath,label\n\n a.jpg , ant \n", [("a.jpg", "ant")]),
        ("l.csv", '"a\nb.jpg",1\n', [("a\nb.jpg", "1")]),
    ],
)
def test_tables(write, name, text, expected):
    assert said(write(text, name)) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.txt", b"# nothing\n\n", "l.txt must list files, got no line with a path"),
        ("l.txt", b"a.jpg\n\xff.jpg\n", "l.txt, line 2: a list must be UTF-8 text"),
        ("l.txt", b"a.jpg\nb\0c.jpg\n", "l.txt, line 2: a list must be text, got a NUL"),
        ("l.csv", b"path,label\na.jpg,1\n,2\n", r"l.csv, line 3: no path in column 1, got \['', '2'\]"),
        ("l.csv", b'path\n"a.jpg\n', "l.csv, line 2: unexpected end of data"),
        ("l.csv", b"label,path\n1\n", "l.csv, line 2: no path in column 2"),
        ("l.txt", b"i/ant/000.png\t1\ni/ant/000.png\t2\n", r"line 2: .*000.png has the label '2', and '1' in line 1"),
        (
            "l.txt",
            b"i/ant/000.png\t99999999999\n",
            "l.txt, line 1: a label that is a number must be below 2,147,483,648, got 99999999999$",
        ),
        ("l.csv", b"a.jpg,1\nb.jpg,%s\n" % (b"9" * 5000), "l.csv, line 2: a label that is a number .* got 9{20}…$"),
        ("l.txt", b"gone.jpg\n", r"l.txt holds no usable image(.|\n)*gone.jpg: no such file"),
        ("l.txt", b"a.tar.gz\n", "a.tar.gz is compressed"),
        ("l.jpg", b"\xff\xd8\xff\xe0", "l.jpg, line 1: a list must be UTF-8 text"),
    ],
)
def test_what_cannot_be_understood_is_told_in_one_line(write, tmp_path, name, content, message):
    write("")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        find_images(tmp_path / name)


def test_the_images_of_a_list(write, tmp_path):
    file = write(
        "i/bee/001.png\tbee\ni/ant/000.png\tant\ngone.jpg\tant\ni/bee/000.png\ni/bee/001.png\tbee\nlist.txt\tx\n"
    )
    found = find_images(file)
    assert [os.path.relpath(path, tmp_path) for path in found.train.files] == [
        "i/bee/001.png", "i/ant/000.png", "i/bee/000.png",
    ]  # fmt: skip
    assert (found.train.classes, list(found.train.labels)) == (["ant", "bee"], [1, 0, -1])
    assert found.notes == [f"1 line(s) of {file} repeat others and are passed over: 5"]
    told = dict(found.train.skipped)
    assert told[str(tmp_path / "gone.jpg")] == "no such file"
    assert told[str(file)].startswith("not an image")
    assert (found.held_out, found.no_labels) == (None, None)


def test_integers_are_classes_in_numerical_order(write):
    file = write("path,label\ni/ant/000.png,10\ni/ant/001.png,9\ni/bee/000.png,-1\ni/bee/001.png,010\n", "l.csv")
    found = find_images(file)
    assert (found.train.classes, list(found.train.labels)) == (["9", "10"], [1, 0, -1, 1])


def test_what_only_looks_like_integers_are_names(write):
    found = find_images(write("i/ant/000.png\t--1\ni/ant/001.png\t1\ni/bee/000.png\t-1\n"))
    assert (found.train.classes, list(found.train.labels)) == (["--1", "-1", "1"], [0, 2, 1])
    found = find_images(write(f"i/ant/000.png\t-{'9' * 5000}\ni/ant/001.png\t-0\ni/bee/000.png\t{'0' * 5000}7\n"))
    assert (found.train.classes, list(found.train.labels)) == (["0", "7"], [-1, 0, 1])


def test_a_list_is_read_once(write, monkeypatch):
    read, opened = lists._lines, []
    monkeypatch.setattr(lists, "_lines", lambda *arguments: opened.append(arguments) or read(*arguments))
    root = write("path,label\ni/ant/000.png,ant\ni/bee/000.png,bee\n", "l.csv")
    assert len(find_images(root, root).held_out.files) == 2
    assert len(opened) == 2


def test_a_list_without_labels_or_of_one_class(write):
    assert find_images(write("i/ant/000.png\ni/bee/000.png\n")).no_labels == "the images have no labels"
    found = find_images(write("i/ant/000.png\t1\ni/bee/000.png\t1\n"))
    assert (found.no_labels, set(found.train.labels)) == ("all images are of one class, '1'", {-1})


def test_files_are_found_from_anywhere(write, tmp_path, monkeypatch):
    file = write("i/ant/000.png\n~/i/ant/001.png\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(find_images("../list.txt").train.files) == 2
    assert find_images(Path("../list.txt")).train.files == find_images(file).train.files


@pytest.mark.slow
def test_a_long_list_is_read_fast(tmp_path):
    lines = [f"train/n{number // 1300:08}/image {number}.JPEG" for number in range(200_000)]
    for name, text in (
        ("l.txt", "\n".join(lines)),
        ("l.csv", "\n".join(f"{line},{number % 1000}" for number, line in enumerate(lines))),
    ):
        (tmp_path / name).write_text(text)
        started = time.process_time()
        listed = read_lines(str(tmp_path / name))
        assert len(listed.paths) == 200_000 and lists._repeated("", listed) == []
        assert time.process_time() - started < 4
        # What is kept, and what it takes to get there: no string, and no tuple, for each line. Of a quarter of them:
        # to be traced takes five times as long.
        (tmp_path / name).write_text(text[: len(text) // 4].rpartition("\n")[0])
        tracemalloc.start()
        listed = read_lines(str(tmp_path / name))
        lists._repeated("", listed)
        kept, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept < 60 * len(listed.paths) and most < 120 * len(listed.paths)

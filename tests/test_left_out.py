"""amcl_fast.left_out: one short line on whatever is left out."""

import pytest

from amcl_fast.left_out import LOOSE, NO_LABEL, SECOND, count, few, of_other_class, shorten, summarise


def test_each_kind_is_told_for_what_it_is():
    skipped = [("a.jpg", "empty file"), ("b.jpg", "found during the run: no such file")]
    skipped += [(f"{number}.jpg", of_other_class("xy"[number % 2])) for number in range(12)]
    skipped += [("c.jpg", LOOSE), ("d", "a link to /e, which is in the data set already")]
    skipped += [("f", "the folder cannot be read: Permission denied"), ("g", "the same folder as /h, which is in")]
    assert summarise(skipped) == (
        "18 left out (2 unreadable files, 12 images of 2 classes that the training does not have (x, y), 1 image "
        "beside the folders of the classes, 1 link to a folder, 2 folders)"
    )


def test_one_is_one_and_nothing_is_nothing():
    assert summarise([("a", "empty file")]) == "1 left out (1 unreadable file)"
    assert summarise([("a", of_other_class("it's"))]) == (
        "1 left out (1 image of 1 class that the training does not have (it's))"
    )
    assert summarise([]) == ""
    assert summarise([("a", NO_LABEL), ("b", f"{SECOND}: c.jpg"), ("d", f"{SECOND}: e.jpg")]) == (
        "3 left out (1 held-out image without a label, 2 images of samples that have one already)"
    )


def test_thousands_stay_a_line():
    skipped = [(f"{number}.jpg", of_other_class(f"n{number % 1000:03}")) for number in range(50_000)]
    assert summarise(skipped) == (
        "50,000 left out (50,000 images of 1,000 classes that the training does not have (n000, n001, n002, n003, n004 "
        "and 995 more))"
    )
    assert few("ab") == "a, b"


def test_a_list_of_thousands_names_the_first_of_a_folder_and_a_reason():
    skipped = [(f"/a/{number}.jpg", "empty file") for number in range(2500)]
    skipped[7:7] = [("/a/other.jpg", "corrupt"), ("/b/1.jpg", "empty file")]
    short = shorten(skipped)
    assert short[:102] == skipped[:102] and short[102:] == [("/a/", "2,400 more: empty file")]
    assert count(short) == count(skipped) == 2502
    assert shorten(skipped[:50]) == skipped[:50]
    assert count([("/a/5 more: .jpg", "5 more: ")]) == 1


@pytest.mark.parametrize(
    ("reason", "common"),
    [
        ("not an image (JPEG are supported): it starts with b': {:04}'", "not an image (JPEG are supported)"),
        ("too large: {} x 3 pixels; at most 2 are accepted", "too large"),
        ("found during the run: too large: {} x 3 pixels", "found during the run: too large"),
        ("a link to /b/{}, which is in the data set already", "a link"),
        ("it is of one kind", "it is of one kind"),
        ("corrupt: it cannot be decoded", "corrupt: it cannot be decoded"),
    ],
)
def test_reasons_that_differ_in_what_was_found_are_of_one_kind(reason, common):
    skipped = [(f"/a/{number}.jpg", reason.format(number)) for number in range(1300)]
    short = shorten(skipped)
    assert short == [*skipped[:100], ("/a/", f"1,200 more: {common}")]
    assert count(short) == 1300


def test_other_kinds_of_reasons_are_listed_on_their_own():
    skipped = [
        (f"/a/{n}.jpg", ("too large: 1 x 2", "found during the run: too large: 1 x 2", "x")[n % 3]) for n in range(600)
    ]
    assert [reason for path, reason in shorten(skipped) if path == "/a/"] == [
        "100 more: too large: 1 x 2",
        "100 more: found during the run: too large: 1 x 2",
        "100 more: x",
    ]


def test_images_of_many_foreign_classes_are_one_kind():
    skipped = [(f"/set/val/n{n % 300}/deep/{n}.jpg", of_other_class(f"n{n % 300}")) for n in range(900)]
    skipped[5:5] = [("/set/val/a/1.jpg", "empty file")]
    short = shorten(skipped)
    assert short == [*skipped[:101], ("/set/val/", "800 more: its class is not one of the training classes")]
    assert count(short) == 901
    assert summarise(skipped).startswith("901 left out (1 unreadable file, 900 images of 300 classes that")

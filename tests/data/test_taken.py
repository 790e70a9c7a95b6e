"""amcl_fast.data.taken: the line on what is trained on and what is held out, of every kind of data."""

import numpy as np
import pytest

from amcl_fast.data.scan.images import Images
from amcl_fast.data.sources.folder import Sources
from amcl_fast.data.taken import taken

CLASSES = ["ant", "bee"]


def images(count, classes=CLASSES, label=None):
    labels = np.arange(count) % len(classes) if classes and label is None else np.full(count, label or 0)
    return Images([f"/x/{number}.jpg" for number in range(count)], labels if classes else labels - 1, classes)


def sources(found, apart=None, extra=None, /, **places):
    return Sources(found, apart, extra, None, [], places=places)


@pytest.mark.parametrize(
    ("train", "query", "there", "found", "line"),
    [
        (1200, 100, 1200, {"train": "train/", "held_out": "val/"},
         "1,200 images in 2 classes (train/), 100 held out (val/)"),
        (1200, 100, 5000, {"train": "train/", "held_out": "val/"},
         "1,200 of 5,000 images in 2 classes (train/), 100 held out (val/)"),
        (1, 0, 1, {"train": "pets/", "held_out": ""}, "1 image in 2 classes (pets/), none held out"),
        (4, 4, 4, {"train": "3 shards", "held_out": "1 shard of val"},
         "4 images in 2 classes (3 shards), 4 held out (1 shard of val)"),
    ],
)  # fmt: skip
def test_parts_in_words(train, query, there, found, line):
    query = images(query)
    assert taken(images(train), query, there, sources(images(train), query, **found)) == line


def test_a_tenth_and_images_without_a_label():
    train, extra = images(10), images(4, [])
    both = Images(list(train.files) + list(extra.files), np.append(train.labels, [-1] * 4), CLASSES)
    found = sources(train, None, extra, train="train/", unlabelled="unlabeled/")
    line = "10 images in 2 classes (train/) and 4 without a label (unlabeled/), 2 held out (a tenth of each class)"
    assert taken(both, images(2), 14, found) == line
    alone = sources(images(0, []), None, extra, train="", unlabelled="unlabeled/")
    assert taken(extra, images(0, []), 4, alone) == "4 images without labels (unlabeled/)"
    assert taken(extra, images(0, []), 4, sources(extra, train="pets/")) == "4 images without labels (pets/)"


def test_what_is_not_as_expected_is_told():
    query = images(3, label=1)
    found = sources(images(4), query, train="train/", held_out="val/")
    assert taken(images(4), query, 4, found).endswith(", 3 held out (val/), none of them of ant")
    digits = sorted(map(str, range(12)))
    line = taken(images(12, digits), images(12, digits), 12, sources(images(12, digits), train="train/"))
    assert line == (
        "12 images in 12 classes (train/), classes in the order 0, 1, 10, 11, …, 12 held out (a tenth of each class)"
    )

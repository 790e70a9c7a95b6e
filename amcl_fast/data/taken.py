"""What was taken for what, in a line: how many images of how many classes are trained on, and which are held out."""

import numpy as np

from amcl_fast.data.scan.images import Images
from amcl_fast.data.sources.folder import Sources
from amcl_fast.left_out import few


def taken(train: Images, query: Images, there: int, found: Sources) -> str:
    """The images of a run, in words: "12,345 images in 10 classes (train/), 1,000 held out (val/)".

    Args:
        train: what is trained on.
        query: what is measured on.
        there: images that would be trained on without a limit.
        found: of which these are.
    """
    without = len(found.unlabelled.files) if found.unlabelled else 0
    labelled, extra = _where(found.places.get("train")), _where(found.places.get("unlabelled"))
    if len(train.files) < there:
        text, without = f"{len(train.files):,} of {_count(there, 'image')}", 0
    elif len(train.files) == without and found.unlabelled:
        text, labelled, without = _count(without, "image"), extra, 0
    else:
        text = _count(len(train.files) - without, "image")
    if train.classes:
        text += f" in {_count(len(train.classes), 'class', 'classes')}{labelled}"
    else:
        text += f" without labels{labelled}"
    if without:
        text += f" and {without:,} without a label{extra}"
    if order := _numbers(train.classes):
        text += f", classes in the order {order}"
    if not train.classes:
        return text
    if not len(query.files):
        return f"{text}, none held out"
    where = _where(found.places.get("held_out")) if found.held_out is not None else " (a tenth of each class)"
    text += f", {len(query.files):,} held out{where}"
    measured = {train.classes[label] for label in np.unique(query.labels[query.labels >= 0]).tolist()}
    lacking = [name for name in train.classes if name not in measured]
    return f"{text}, none of them of {few(lacking)}" if lacking else text


def _numbers(classes: list[str]) -> str:
    """The first names of classes that are numbers, in an order that is not that of the numbers; "" otherwise."""
    if not all(name.isdecimal() for name in classes) or classes == sorted(classes, key=int):
        return ""
    return f"{', '.join(classes[:4])}, …"


def _where(place: str | None) -> str:
    return f" ({place})" if place else ""


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"

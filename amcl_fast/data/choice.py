"""Which images of a data set are held out, trained on and measured with: always the same of the same images."""

import numpy as np

from amcl_fast.data.scan.images import Images
from amcl_fast.data.sources.folder import Sources

_HELD_OUT = 0.1


def held_out_part(images: Images) -> np.ndarray:
    """(n,) booleans, true for a tenth of every class that has two images or more, and at least one of it."""
    ranks, sizes = _ranks(images.labels)
    held_out = ranks < np.maximum(1, (_HELD_OUT * sizes).astype(int)) * (sizes > 1)
    return held_out & (images.labels >= 0)


def divided(train: Images, held_out: Images | None) -> tuple[Images, Images]:
    """Those to train on and those to measure on, of which there may be some apart; if not, `held_out_part` is."""
    if held_out is not None:
        return train, held_out
    chosen = held_out_part(train)
    return train.subset(~chosen), train.subset(chosen)


def limited(images: Images, most: int) -> Images:
    """At most so many images, the same number of each class as nearly as possible."""
    ranks, _ = _ranks(images.labels)
    return images.subset(np.sort(np.argsort(ranks, kind="stable")[:most]))


def sampled(images: Images, most: int | None) -> Images:
    """Those with a label, or a sample of them, which does not depend on what else has happened."""
    places = np.flatnonzero(images.labels >= 0)
    if most is not None and most < len(places):
        labels = images.labels[places]
        ranks, _ = _ranks(labels)
        # Of fewer images than classes not the first classes, and the same ones in bank and queries.
        classes = np.random.default_rng(len(images.classes)).permutation(len(images.classes))
        places = np.sort(places[np.lexsort((classes[labels], ranks))[:most]])
    return images.subset(places)


def spread(images: Images, classes: int, most: int) -> Images:
    """At most so many of each of at most so many classes, which are spread evenly over all of them."""
    present = np.unique(images.labels)
    chosen = present[np.linspace(0, len(present) - 1, min(classes, len(present))).astype(int)]
    ranks, _ = _ranks(images.labels)
    return images.subset(np.flatnonzero(np.isin(images.labels, chosen) & (ranks < most)))


def unmeasurable(bank: Images, queries: Images) -> str | None:
    """Why the classes of `queries` cannot be told by images of `bank`; None if they can."""
    known = np.unique(bank.labels[bank.labels >= 0])
    if len(known) == 1:
        return f"all images that are trained on and have a label are of one class, {bank.classes[known[0]]!r}"
    if not queries.files:
        return "no image is held out, since no class has two"
    if not np.isin(queries.labels, known).any():
        return "no held-out image is of a class that is trained on"
    return None


def _ranks(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each image its place in a fixed shuffle of its class, and the size of its class."""
    order = np.argsort(labels, kind="stable")
    of, begins, counts = np.unique(labels[order], return_index=True, return_counts=True)
    ranks, sizes = np.empty(len(labels), int), np.empty(len(labels), int)
    for label, begin, count in zip(of.tolist(), begins.tolist(), counts.tolist(), strict=True):
        members = order[begin : begin + count]
        ranks[members] = np.random.default_rng((label + 1, count)).permutation(count)
        sizes[members] = count
    return ranks, sizes


def to_measure(found: Sources, path: str) -> tuple[Images, Images]:
    """Images with classes to learn from, and those that are asked.

    Raises:
        ValueError: nothing can be measured on them.
    """
    bank, query = divided(found.train, found.held_out)
    if why := found.no_labels or unmeasurable(bank, query):
        raise ValueError(f"data.evaluation, {path}, cannot be measured on: {why}")
    return bank, query

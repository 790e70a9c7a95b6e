"""The nearest training images of some held-out ones, against all similarities; the pictures that are kept of them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from amcl_fast.callbacks import neighbours
from amcl_fast.callbacks.neighbours import nearest_images, pictured
from amcl_fast.evaluate import knn_accuracy
from amcl_fast.runs.neighbours import Neighbours


class Loader:
    """Images whose pixels are the number of their row."""

    def __init__(self, rows):
        self.rows = rows

    def only(self, rows):
        return Loader([self.rows[row] for row in rows])

    def __iter__(self):
        for row in self.rows:
            yield torch.full((1, 3, 200, 200), row / 255), torch.zeros(1)


class Data:
    classes = ("ant", "bee", "cow", "dog")
    mean, std = (0.0,) * 3, (1.0,) * 3


def test_they_are_the_nearest_of_all(tmp_path, monkeypatch):
    monkeypatch.setattr(neighbours, "_ROWS", 7)
    draw = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(40, 6, generator=draw), torch.randn(30, 6, generator=draw)
    bank_labels, query_labels = torch.arange(40) % 4, torch.tensor([3, 1, 1] * 10)  # none of classes 0 and 2
    loaders = Loader(range(40)), Loader(range(100, 130))
    found = nearest_images(loaders, bank, bank_labels, queries, query_labels)
    assert found.queries == [(0, 1), (0, 0)]  # the first of each class
    every = F.normalize(queries[[1, 0]]) @ F.normalize(bank).T
    expected = every.argsort(1, descending=True)[:, :5]
    assert [[row for _, row in places] for places in found.found] == expected.tolist()
    torch.testing.assert_close(torch.tensor(found.similarity), every.gather(1, expected))
    assert found.labels == [[label, *of.tolist()] for label, of in zip((1, 3), bank_labels[expected], strict=True)]

    by_class = torch.zeros(4, 2, dtype=torch.int64)
    settings = {"k": 5, "num_classes": 4}
    accuracy = knn_accuracy(bank, bank_labels, queries, query_labels, by_class=by_class, **settings)
    assert by_class[:, 1].tolist() == [0, 20, 0, 10]
    assert accuracy == pytest.approx(100 * by_class[:, 0].sum().item() / 30)
    one = knn_accuracy(bank, bank_labels, *(part[query_labels == 3] for part in (queries, query_labels)), **settings)
    assert by_class[3, 0] == round(one / 10)

    pictured(found, by_class, Data, 12).save(tmp_path / "snapshots" / "neighbours.npz")
    kept = Neighbours.load(tmp_path / "snapshots" / "neighbours.npz")
    assert kept.images.shape == (2, 6, 96, 96, 3)  # made smaller
    assert kept.images[:, :, 0, 0, 0].tolist() == [[101, *expected[0]], [100, *expected[1]]]
    assert (kept.step, kept.right.tolist(), kept.labels.tolist()) == (12, by_class[:, 0].tolist(), found.labels)


def test_data_that_cannot_be_asked_for_single_images_have_classes_alone():
    found = nearest_images(([], []), torch.eye(3), torch.arange(3), torch.eye(3), torch.arange(3))
    assert [len(of) for of in found.found] == [3, 3, 3]  # all there are
    kept = pictured(found, torch.ones(4, 2, dtype=torch.int64), Data, 0)
    assert kept.images.shape[0] == 0 and kept.asked.tolist() == [1] * 4
    assert np.array_equal(kept.classes, Data.classes)

"""amcl_fast.evaluate.knn against a plain NumPy transcription of the formula."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from amcl_fast.evaluate import encode, knn_accuracy, pixel_features


def literal_knn(bank, bank_labels, queries, query_labels, k, temperature, num_classes):
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (bank, queries)]
    correct = 0
    for row, label in zip(unit[1], query_labels, strict=True):
        similarity = unit[0] @ row
        votes = np.zeros(num_classes)
        for neighbour in np.argsort(-similarity)[:k]:
            votes[bank_labels[neighbour]] += math.exp(similarity[neighbour] / temperature)
        correct += votes.argmax() == label
    return 100 * correct / len(queries)


def clusters(size, seed, width=6, classes=4):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (size,), generator=generator)
    centres = torch.eye(classes, width)
    return centres[labels] + 0.9 * torch.randn(size, width, generator=generator), labels


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (7, 0.1), (7, 2.0), (200, 0.1)])
def test_equals_the_formula(k, temperature):
    (bank, bank_labels), (queries, query_labels) = clusters(90, 1), clusters(53, 2)
    found = knn_accuracy(
        bank, bank_labels, queries, query_labels, k=k, temperature=temperature, num_classes=4, chunk=10
    )
    arrays = [tensor.numpy() for tensor in (bank.double(), bank_labels, queries.double(), query_labels)]
    expected = literal_knn(*arrays, k, temperature, 4)
    assert 30 < expected < 90
    assert found == pytest.approx(expected)


def test_chunks_do_not_matter():
    (bank, bank_labels), (queries, query_labels) = clusters(60, 3), clusters(41, 4)
    every = {
        knn_accuracy(bank, bank_labels, queries, query_labels, k=9, num_classes=4, chunk=chunk)
        for chunk in (None, 1, 7, 41, 100)
    }
    assert len(every) == 1


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 64 rows, 16 queries with each, 40 between two passes over the bank."""
    monkeypatch.setattr("amcl_fast.evaluate.knn._ON_CPU", (64, 16, 40))


@pytest.mark.parametrize("k", [1, 30, 100, 700, 1000])
@pytest.mark.parametrize("order", ["by class", "ever nearer", "random"])
def test_tiles_hold_the_same_neighbours(small_tiles, k, order):
    """More than one tile and less, more neighbours than a tile has rows, and classes that lie together."""
    (bank, bank_labels), (queries, query_labels) = clusters(777, 11), clusters(53, 12)
    places = {
        "by class": bank_labels.argsort(stable=True),
        "ever nearer": F.cosine_similarity(bank, queries.mean(0, keepdim=True)).argsort(),
        "random": torch.arange(777),
    }[order]
    bank, bank_labels = bank[places], bank_labels[places]
    found = knn_accuracy(bank, bank_labels, queries, query_labels, k=k, num_classes=4)
    arrays = [tensor.numpy() for tensor in (bank.double(), bank_labels, queries.double(), query_labels)]
    assert found == pytest.approx(literal_knn(*arrays, k, 0.1, 4))


def test_equal_rows_are_neighbours_of_each_other(small_tiles):
    """All similarities are the same: each query has k neighbours, and the only class gets the votes."""
    bank, labels = torch.ones(500, 3), torch.ones(500, dtype=torch.int64)
    assert knn_accuracy(bank, labels, bank[:50], labels[:50], k=200, num_classes=2) == 100.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_piece_of_memory_is_as_large_as_the_bank(monkeypatch, dtype):
    monkeypatch.setattr("amcl_fast.evaluate.knn._ON_CPU", (2048, 32, 64))
    monkeypatch.setattr("amcl_fast.evaluate.features._CHECKED", 1 << 16)
    bank, labels = torch.randn(60_000, 32).to(dtype), torch.arange(60_000) % 9
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        knn_accuracy(bank, labels, bank[:40], labels[:40], k=5, num_classes=9)
    assert 0 < max(event.self_cpu_memory_usage for event in seen.events()) < bank.nbytes / 4


def test_progress_is_told_of_every_tile(small_tiles):
    told = []

    def progress(loop, what):
        told.append((what, len(loop)))
        for item in loop:
            told.append(item)
            yield item

    bank, labels = clusters(500, 1)
    knn_accuracy(bank, labels, bank[:81], labels[:81], num_classes=4, k=3, progress=progress)
    assert told == [("tiles of kNN", 24), *range(24)]  # 8 tiles, 3 passes


def test_scale_of_a_feature_does_not_matter():
    (bank, bank_labels), (queries, query_labels) = clusters(60, 5), clusters(41, 6)
    plain = knn_accuracy(bank, bank_labels, queries, query_labels, k=9, num_classes=4)
    lengths = torch.linspace(0.1, 50, 60)[:, None]
    scaled = knn_accuracy(lengths * bank, bank_labels, 7 * queries, query_labels, k=9, num_classes=4)
    assert scaled == plain


def test_near_neighbours_outvote_a_majority():
    """One neighbour at s = 1 against two at s = 0.8: exp(10) > 2 exp(8), but exp(1) < 2 exp(0.8)."""
    bank = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, -0.6]])
    labels, query = torch.tensor([0, 1, 1]), torch.tensor([[2.0, 0.0]])
    sharp, flat = (
        knn_accuracy(bank, labels, query, torch.tensor([0]), k=3, temperature=t, num_classes=2) for t in (0.1, 1.0)
    )
    assert (sharp, flat) == (100.0, 0.0)


def test_small_temperature_does_not_overflow():
    bank, labels = clusters(30, 7)
    assert knn_accuracy(bank, labels, bank, labels, k=5, temperature=1e-3, num_classes=4) == 100.0


def test_half_precision_features_are_judged_in_float32():
    bank, labels = clusters(30, 8)
    half = knn_accuracy(bank.bfloat16(), labels, bank.bfloat16(), labels, k=5, num_classes=4)
    assert half == knn_accuracy(bank.bfloat16().float(), labels, bank.bfloat16().float(), labels, k=5, num_classes=4)


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"bank": torch.ones(3, 2, 2)}, ValueError, "bank"),
        ({"queries": torch.ones(2, 5)}, ValueError, "queries"),
        (
            {"bank": torch.empty(0, 2), "bank_labels": torch.empty(0, dtype=torch.int64)},
            ValueError,
            "bank must have at least one row, got none",
        ),
        (
            {"queries": torch.empty(0, 2), "query_labels": torch.empty(0, dtype=torch.int64)},
            ValueError,
            "queries",
        ),
        ({"bank": torch.ones(3, 2, dtype=torch.int64)}, TypeError, "bank"),
        ({"bank": torch.full((3, 2), math.nan)}, ValueError, "bank must be finite"),
        ({"bank_labels": torch.tensor([0, 1])}, ValueError, "bank_labels"),
        ({"bank_labels": torch.tensor([0, 1, 2])}, ValueError, "bank_labels"),
        ({"query_labels": torch.tensor([0, -1])}, ValueError, "query_labels"),
        ({"query_labels": torch.tensor([0.0, 1.0])}, TypeError, "query_labels"),
        ({"k": 0}, ValueError, "k must"),
        ({"temperature": 0.0}, ValueError, "temperature"),
        ({"temperature": math.nan}, ValueError, "temperature"),
        ({"num_classes": 0}, ValueError, "num_classes"),
        ({"chunk": 0}, ValueError, "chunk"),
    ],
)
def test_bad_arguments_are_named(change, error, named):
    arguments = {
        "bank": torch.ones(3, 2),
        "bank_labels": torch.tensor([0, 1, 1]),
        "queries": torch.ones(2, 2),
        "query_labels": torch.tensor([0, 1]),
        "num_classes": 2,
    }
    with pytest.raises(error, match=named):
        knn_accuracy(**(arguments | change))


class Shift(nn.Module):
    """Adds one in training mode, so that a forgotten eval() shows."""

    def forward(self, images):
        return images.mean((2, 3)) + self.training


def test_encode_is_evaluation_and_restores_every_mode():
    backbone = nn.Sequential(Shift(), nn.Dropout(0.5))
    backbone.train()
    backbone[1].eval()
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 2, 2)
    batches = [(images[:3], torch.tensor([0, 1, 2])), (images[3:], torch.tensor([3, 4]))]
    features, labels = encode(backbone, batches, "cpu")
    assert torch.equal(features, torch.arange(5.0)[:, None].expand(5, 3))
    assert labels.tolist() == [0, 1, 2, 3, 4]
    assert (backbone.training, backbone[0].training, backbone[1].training) == (True, True, False)
    assert not features.requires_grad


def test_features_outlive_a_reused_batch():
    memory = torch.zeros(2, 3, 2, 2)

    def reused():
        for value in (1.0, 2.0):
            yield memory.fill_(value), torch.zeros(2, dtype=torch.int64)

    features, _ = pixel_features(reused())
    assert features.shape == (4, 12)
    assert features[:, 0].tolist() == [1.0, 1.0, 2.0, 2.0]


def test_larger_images_are_averaged_down():
    images = torch.rand(4, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    features, _ = pixel_features([(images, torch.zeros(4, dtype=torch.int64))], size=32)
    torch.testing.assert_close(features, images.unfold(2, 2, 2).unfold(3, 3, 3).mean((4, 5)).flatten(1))
    whole, _ = pixel_features([(images[:, :, :32, :32], torch.zeros(4, dtype=torch.int64))], size=32)
    assert torch.equal(whole, images[:, :, :32, :32].flatten(1))


@pytest.mark.parametrize(("dtype", "rows"), [(torch.float16, 2), (torch.float32, 40)])
def test_features_are_kept_in_the_type_that_was_asked_for(dtype, rows):
    images = torch.rand(50, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    batches = list(zip(images.split(rows), torch.arange(50).split(rows), strict=True))
    features, labels = encode(Shift(), iter(batches), "cpu", dtype=dtype)  # whose length nobody knows
    assert features.dtype == dtype and labels.tolist() == list(range(50))
    assert torch.equal(features, images.mean((2, 3)).to(dtype))


def test_an_empty_loader_is_an_error():
    with pytest.raises(ValueError, match="loader"):
        pixel_features([])

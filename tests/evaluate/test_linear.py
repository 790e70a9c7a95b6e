"""amcl_fast.evaluate.linear against a classifier at a time, trained by torch.optim.SGD."""

import math

import pytest
import torch
import torch.nn.functional as F

from amcl_fast.evaluate import ShuffledFeatures, linear_probe

CLASSES = 4


def features(count=50, dim=6, seed=0, classes=CLASSES):
    """Features of overlapping classes, float64."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(99))
    return centres[labels] + torch.randn(count, dim, dtype=torch.float64, generator=generator), labels


def one_classifier(train, rate, epochs, weight_decay):
    """The same training with what torch has for it."""
    dim = train._features.shape[1]
    classifier = torch.nn.Linear(dim, CLASSES, dtype=torch.float64)
    torch.nn.init.zeros_(classifier.weight)
    torch.nn.init.zeros_(classifier.bias)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=rate, momentum=0.9, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * len(train))
    for _ in range(epochs):
        for x, y in train:
            optimizer.zero_grad()
            F.cross_entropy(classifier(x), y).backward()
            optimizer.step()
            schedule.step()
    return classifier


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_every_rate_equals_a_classifier_trained_alone(weight_decay):
    bank, queries = features(), features(40, seed=1)
    rates = (0.01, 0.5, 20.0)
    found = linear_probe(
        ShuffledFeatures(*bank, batch_size=16),
        *queries,
        num_classes=CLASSES,
        rates=rates,
        epochs=3,
        batch_size=16,
        weight_decay=weight_decay,
    )
    for index, rate in enumerate(rates):
        alone = one_classifier(ShuffledFeatures(*bank, batch_size=16), rate * 16 / 256, 3, weight_decay)
        torch.testing.assert_close(found.weight[index], alone.weight.detach(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.bias[index], alone.bias.detach(), rtol=1e-9, atol=1e-12)
        accuracy = (alone(queries[0]).argmax(1) == queries[1]).double().mean().item()
        assert found.top1[index] == pytest.approx(100 * accuracy)


def test_separable_features_are_separated():
    labels = torch.arange(60) % 3
    points = 5 * torch.eye(3)[labels] + 0.1 * torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    found = linear_probe(ShuffledFeatures(points, labels, 20), points, labels, num_classes=3, epochs=20)
    assert max(found.top1) == found.top1[found.best] == 100.0


def test_best_is_the_highest_and_of_equals_the_lowest_rate():
    bank, queries = features(), features(40, seed=1)
    probe = {"num_classes": CLASSES, "epochs": 2}
    found = linear_probe(ShuffledFeatures(*bank, 16), *queries, rates=(30.0, 1e-9, 0.3), **probe)
    assert found.top1[found.best] == max(found.top1)
    twice = linear_probe(ShuffledFeatures(*bank, 16), *queries, rates=(0.3001, 0.3), **probe)
    assert twice.top1[0] == twice.top1[1] and twice.best == 1


def test_top5_counts_the_five_best_of_ten_classes():
    bank, (queries, labels) = features(100, classes=10), features(30, seed=1, classes=10)
    found = linear_probe(ShuffledFeatures(*bank, 25), queries, labels, num_classes=10, rates=(0.1, 3.0), epochs=2)
    for index in range(2):
        logits = queries @ found.weight[index].T + found.bias[index]
        ranked = logits.argsort(1, descending=True)[:, :5]
        assert found.top5[index] == pytest.approx(100 * (ranked == labels[:, None]).any(1).double().mean().item())
        assert found.top5[index] > found.top1[index]
    few = linear_probe(ShuffledFeatures(*features(), 16), *features(), num_classes=CLASSES, epochs=1)
    assert few.top5 is None


def test_a_rate_that_diverges_gets_nothing_right():
    bank = features()
    found = linear_probe(ShuffledFeatures(*bank, 16), *bank, num_classes=CLASSES, rates=(0.1, 1e308), epochs=2)
    assert found.top1[0] > 25 and found.top1[1] == 0 and found.best == 0
    assert not math.isfinite(found.weight[1].sum().item())


def test_every_epoch_has_its_own_order_of_all_rows():
    train = ShuffledFeatures(torch.arange(10.0)[:, None], torch.arange(10), batch_size=4)
    first, second = ([labels for _, labels in train] for _ in range(2))
    assert [len(batch) for batch in first] == [4, 4, 2] and len(train) == 3
    first, second = torch.cat(first), torch.cat(second)
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(10))
    assert not torch.equal(first, second)
    assert all(torch.equal(x[:, 0].long(), y) for x, y in train)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"rates": ()}, "rates"),
        ({"rates": (0.1, -1.0)}, r"rates.*\[0.1, -1.0\]"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size"),
        ({"momentum": 1.0}, "momentum"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"num_classes": 3}, "query_labels must lie in 0..2"),
    ],
)
def test_settings_out_of_range_are_named(change, message):
    settings = {"num_classes": CLASSES, **change}
    with pytest.raises(ValueError, match=message):
        linear_probe(ShuffledFeatures(*features(), 16), *features(), **settings)


@pytest.mark.parametrize(
    ("train", "error", "message"),
    [
        ([], ValueError, "train must yield at least one batch, got none"),
        (
            [(torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64))],
            ValueError,
            "queries must have the 5 features.*got 6",
        ),
        ([(torch.full((4, 6), torch.nan), torch.zeros(4, dtype=torch.int64))], ValueError, "features of train.*finite"),
        ([(torch.zeros(4, 6), torch.full((4,), 7))], ValueError, "labels of train.*7"),
        ([(torch.zeros(4, 6), torch.zeros(4))], TypeError, "labels of train must be int64"),
    ],
)
def test_training_features_that_cannot_be_used_are_named(train, error, message):
    with pytest.raises(error, match=message):
        linear_probe(train, *features(), num_classes=CLASSES, epochs=1)

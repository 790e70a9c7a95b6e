"""amcl_fast.evaluate.ridge: against the normal equations written out; test_shared.py has several processes."""

import numpy as np
import pytest
import torch

from amcl_fast.evaluate.ridge import HELD_OUT, PENALTIES, ridge_probe


def features(rows, seed=0):
    """Three classes of unequal size around centres of their own, with features of unequal scale and one constant."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (rows,), generator=generator).clamp(max=2)
    centres = torch.tensor([[2.0, 0, 0, 0], [0, 30, 0, 0], [0, 0, 0.1, 0]])
    noise = torch.randn(rows, 4, generator=generator) * torch.tensor([3.0, 40, 0.2, 0])
    return centres[labels] + noise + 7, labels


def literal(bank, labels, queries, query_labels, penalty):
    """Least squares with an intercept that is not penalised, on features of mean 0 and variance 1."""
    bank, queries = bank.double().numpy(), queries.double().numpy()
    deviation = bank.std(0)
    scaled = [(of - bank.mean(0)) / np.where(deviation == 0, 1, deviation) for of in (bank, queries)]
    x, asked = (np.hstack([of, np.ones((len(of), 1))]) for of in scaled)
    penalties = np.diag([penalty * len(bank)] * bank.shape[1] + [0.0])
    weight = np.linalg.solve(x.T @ x + penalties, x.T @ np.eye(3)[labels])
    return 100 * np.mean((asked @ weight).argmax(1) == query_labels.numpy())


def test_accuracy_is_that_of_the_normal_equations():
    """And the penalty that of the best regression on nine tenths, asked on the other tenth."""
    (bank, labels), (queries, query_labels) = features(200), features(500, seed=1)
    found = ridge_probe(bank, labels, queries, query_labels, num_classes=3)
    held_out = np.arange(200) % HELD_OUT == HELD_OUT - 1
    mean, deviation = bank.mean(0), bank.std(0, correction=0)
    # Nine tenths keep the scale of all, so that one penalty means the same to both.
    scaled = (bank - mean) / torch.where(deviation == 0, 1, deviation)
    x = np.hstack([scaled.double().numpy(), np.ones((200, 1))])
    accuracies = []
    for penalty in PENALTIES:
        rest = x[~held_out]
        penalties = np.diag([penalty * len(rest)] * 4 + [0.0])
        weight = np.linalg.solve(rest.T @ rest + penalties, rest.T @ np.eye(3)[labels.numpy()[~held_out]])
        accuracies.append(np.mean((x[held_out] @ weight).argmax(1) == labels.numpy()[held_out]))
    best = max(penalty for penalty, of in zip(PENALTIES, accuracies, strict=True) if of == max(accuracies))
    assert found.penalty == best
    assert found.accuracy == pytest.approx(literal(bank, labels, queries, query_labels, best))
    assert 40 < found.accuracy < 90


def test_a_few_images_hold_none_out():
    bank, labels = torch.eye(3).repeat(2, 1), torch.arange(3).repeat(2)
    found = ridge_probe(bank, labels, torch.eye(3), torch.arange(3), num_classes=3)
    assert found == (100.0, 1e-2)


def test_features_that_are_not_finite_are_refused():
    bank, labels = features(20)
    bank[3, 1] = float("nan")
    with pytest.raises(ValueError, match="bank must be finite"):
        ridge_probe(bank, labels, bank, labels, num_classes=3)

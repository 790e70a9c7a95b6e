"""amcl_fast.study.oracle: against a loss that leaves negatives of the anchor's class out one by one."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from amcl_fast import PerplexityTemperature, SimCLRLoss
from amcl_fast.methods import MoCo, SimCLR
from amcl_fast.models import BackboneConfig, ProjectorConfig
from amcl_fast.study.oracle import Labels, MoCoOracle, SimCLROracle
from tests.helpers import literal
from tests.helpers.small_losses import BACKENDS, device_of

N, HEADS, D, CLASSES, TAU = 6, 2, 8, 3, 0.3
LABELS = torch.tensor([0, 1, 2, 0, 1, 0])
QUEUE_LABELS = torch.tensor([0, 1, 2, 2, 1, -1, 0, 2, 1, -1])
FORMS = [("topk_mean", 3, False), ("topk_softmax", 3, False), ("topk_softmax", 2, True), ("softmax", None, True)]


def told(loss, backend):
    loss.labels, loss.queue_labels = (labels.to(device_of(backend)) for labels in (LABELS, QUEUE_LABELS))
    loss.classes = CLASSES
    return loss.to(device_of(backend))


def views(backend, count, rows=N):
    torch.manual_seed(1)
    return [torch.randn(rows, HEADS, D, device=device_of(backend), requires_grad=True) for _ in range(count)]


def of_anchors(rows, positives, labels, candidates, of_candidates, form, top_k, include_positive):
    """Mean over the anchors of all heads' sums; rows (A, C, d), candidates (B, C, d)."""
    total = 0.0
    for c in range(HEADS):
        x, y, z = (literal.unit(of[:, c]) for of in (rows, positives, candidates))
        for i, own in enumerate(labels):
            left = [z[j] for j, other in enumerate(of_candidates) if other != own]
            total += literal.anchor_term(x[i], y[i], left, lambda a, b: TAU, form, top_k, 0.0, include_positive)
    return total / len(rows)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("form", "top_k", "include_positive"), FORMS)
def test_simclr_without_the_negatives_of_a_class(form, top_k, include_positive, backend):
    settings = {"negatives": form, "top_k": top_k, "include_positive": include_positive, "backend": backend}
    z1, z2 = views(backend, 2)
    found = told(SimCLROracle(TAU, **settings), backend).of_views([z1, z2])
    a, b = (z.detach().double().cpu().numpy() for z in (z1, z2))
    rows, labels = np.concatenate([a, b]), LABELS.repeat(2).tolist()
    expected = of_anchors(rows, np.concatenate([b, a]), labels, rows, labels, form, top_k, include_positive)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    found.backward()
    assert z1.grad.isfinite().all() and z1.grad.abs().sum() > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("form", "top_k", "include_positive"), FORMS)
def test_moco_without_the_keys_of_a_class(form, top_k, include_positive, backend):
    settings = {"negatives": form, "top_k": top_k, "include_positive": include_positive, "backend": backend}
    q1, q2, k1, k2 = views(backend, 4)
    queue = torch.nn.functional.normalize(torch.randn(HEADS, D, len(QUEUE_LABELS)), dim=1).to(q1)
    found = told(MoCoOracle(TAU, **settings), backend).of_views([q1, q2], [k1.detach(), k2.detach()], queue)
    a, b, x, y = (z.detach().double().cpu().numpy() for z in (q1, q2, k1, k2))
    expected = of_anchors(
        np.concatenate([a, b, y, x]),
        np.concatenate([y, x, a, b]),
        LABELS.repeat(4).tolist(),
        queue.double().cpu().permute(2, 0, 1).numpy(),
        QUEUE_LABELS.tolist(),
        *(form, top_k, include_positive),
    )
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_gradients_are_those_of_the_loss_without_them():
    z1, z2 = (z.detach().double().requires_grad_() for z in views("reference", 2))
    loss = told(SimCLROracle(TAU, negatives="softmax", backend="reference"), "reference")
    assert torch.autograd.gradcheck(lambda a, b: loss.of_views([a, b]), (z1, z2))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: SimCLROracle(PerplexityTemperature()), "temperature must be a constant of at most 1 with the label"),
        (lambda: MoCoOracle(1.5), "temperature must be a constant of at most 1 with the label oracle, got 1.5"),
        (
            lambda: told(SimCLROracle(TAU, top_k=7), "reference").of_views(views("reference", 2)),
            "top_k must be at most 6, the negatives of other classes that an anchor has, with the label oracle, got 7",
        ),
        (
            lambda: told(SimCLROracle(TAU), "reference").of_views(views("reference", 3)),
            "data.views must be two of one size with the label oracle, got 3",
        ),
    ],
)
def test_what_an_oracle_cannot_do_is_refused(act, message):
    with pytest.raises(ValueError, match=message):
        act()


def method(kind, criterion, **settings):
    backbone = BackboneConfig(name="resnet18", stem="small", width=8)
    return kind(criterion, backbone=backbone, projector=ProjectorConfig(heads=HEADS, hidden_dim=4, dim=D), **settings)


def test_the_queue_of_labels_turns_with_that_of_keys():
    """Seven keys' places, four keys a batch: the second batch goes round."""
    moco = method(MoCo, MoCoOracle(TAU, top_k=1), queue_size=7)
    data = SimpleNamespace(num_classes=9, views=[None, None], target_views=2)
    trainer, labels = SimpleNamespace(datamodule=data), Labels()
    labels.setup(trainer, moco, "fit")
    for first in (1, 5):
        batch = None, torch.tensor([first, first + 1])
        labels.on_train_batch_start(trainer, moco, batch, 0)
        kept = moco.criterion.queue_labels.tolist()
        # A key says of which image it is: its label, as (cosine, sine), in all dimensions.
        moco._keys = (batch[1].repeat(2).float() / 10).view(1, 4, 1).expand(HEADS, 4, D)
        labels.on_after_backward(trainer, moco)
        moco.on_after_backward()
    assert kept == [1, 2, 1, 2, -1, -1, -1]
    assert moco.criterion.queue_labels.tolist() == [6, 2, 1, 2, 5, 6, 5]
    assert (moco.queue.keys[0, :, 0] * 10).round().long().tolist() == [6, 2, 1, 2, 5, 6, 5]
    again = Labels()
    again.load_state_dict(labels.state_dict())
    again.on_train_batch_start(trainer, moco, batch, 0)
    assert moco.criterion.queue_labels.tolist() == [6, 2, 1, 2, 5, 6, 5]


def test_a_criterion_without_labels_is_refused():
    with pytest.raises(ValueError, match=r"model.criterion must be one that takes labels where .*, got SimCLRLoss"):
        Labels().setup(None, method(SimCLR, SimCLRLoss(TAU)), "fit")


def test_more_views_are_refused_before_the_first_step():
    trainer = SimpleNamespace(datamodule=SimpleNamespace(views=[None] * 4, target_views=2))
    with pytest.raises(ValueError, match=r"data.views must be two of one size .*, got 4, of which 2 of the largest"):
        Labels().setup(trainer, method(SimCLR, SimCLROracle(TAU)), "fit")

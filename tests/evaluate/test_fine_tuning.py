"""Fine-tuning against the same training with what torch has for it."""

import math

import pytest
import torch
import torch.nn.functional as F

from amcl_fast.evaluate import FineTuning, fine_tune
from amcl_fast.evaluate.fine_tuning import usual
from amcl_fast.models import BackboneConfig, build_backbone

CLASSES = 12


def images(count, seed):
    labels = torch.arange(count) % CLASSES
    noise = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return list(zip((noise + labels[:, None, None, None] / 4).split(12), labels.split(12), strict=True))


def backbone(*more):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), *more
    )


def tuned(module, **settings):
    train, queries = images(36, 0), images(24, 1)
    return fine_tune(module, lambda: train, queries, FineTuning(**settings), num_classes=CLASSES, batch_size=12)


def by_hand(rate, epochs):
    train, queries, module = images(36, 0), images(24, 1), backbone()
    head = torch.nn.Linear(5, CLASSES)
    torch.nn.init.zeros_(head.weight), torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.SGD([*module.parameters(), *head.parameters()], lr=rate * 12 / 256, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * len(train))
    for _ in range(epochs):
        for x, y in train:
            optimizer.zero_grad()
            F.cross_entropy(head(module(x)), y).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        logits = head(module.eval()(torch.cat([x for x, _ in queries])))
    labels = torch.cat([y for _, y in queries])
    right = logits.topk(5).indices == labels[:, None]
    return module.state_dict(), head.weight, 100 * right[:, 0].double().mean().item(), 100 * right.sum().item() / 24


def test_each_rate_is_a_training_of_its_own_of_encoder_and_classifier():
    rates, module = (0.3, 3.0), backbone()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    told = []
    found = fine_tune(
        module,
        lambda: images(36, 0),
        images(24, 1),
        FineTuning(rates=rates, epochs=4),
        num_classes=CLASSES,
        batch_size=12,
        told=lambda *of_one: told.append(of_one),
    )
    alone = [by_hand(rate, 4) for rate in rates]
    assert found.top1 == pytest.approx([top1 for *_, top1, _ in alone])
    assert found.top5 == pytest.approx([top5 for *_, top5 in alone]) and found.queries == 24
    assert told == list(zip(rates, found.top1, strict=True))
    expected, weight, *_ = alone[found.best]
    torch.testing.assert_close(found.encoder, dict(expected), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.weight, weight.detach(), rtol=1e-4, atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert found.as_dict()["sweep"]["top1"] == list(found.top1) and found.as_dict()["rate"] == rates[found.best]


def test_it_repeats_bit_for_bit_and_leaves_the_random_numbers_of_others_alone():
    module = backbone(torch.nn.Dropout(0.5))
    state = torch.get_rng_state()
    first = tuned(module, rates=(1.0,), epochs=2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    again, other = (tuned(module, rates=(1.0,), epochs=2, seed=seed) for seed in (0, 1))
    assert torch.equal(again.weight, first.weight) and not torch.equal(other.weight, first.weight)


def test_the_encoder_decides_what_is_usual():
    assert usual(backbone(), epochs=20) == FineTuning("sgd", (0.01, 0.03, 0.1), 20, 0.0, 0.0, None, 0)
    assert usual(backbone(), optimizer="adamw", rates=(1.0,)) == FineTuning("adamw", (1.0,), 30, 1.5, 0.05, None)
    pytest.importorskip("timm")
    vit = build_backbone(BackboneConfig(name="timm/test_vit", size=48))
    assert usual(vit, epochs=40, seed=3) == FineTuning("adamw", (2.5e-4, 5e-4, 1e-3), 40, 2.0, 0.05, 0.75, 3)
    assert usual(vit, layer_decay=0.9).layer_decay == 0.9 and usual(vit, optimizer="sgd").layer_decay is None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"optimizer": "lars"}, "optimizer must be sgd or adamw, got 'lars'"),
        ({"rates": ()}, r"rates must be one or more numbers above 0, got \[\]"),
        ({"rates": (0.1, math.nan)}, "rates must be one or more numbers above 0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"weight_decay": -1.0}, "weight_decay must be finite and at least 0, got -1.0"),
        ({"warmup_epochs": 30}, "warmup_epochs must be at least 0 and below epochs, got 30"),
        ({"seed": -1}, "seed must be from 0 to 4294967295, got -1"),
        ({"layer_decay": 0.5}, "layer_decay must be unset with Sequential"),
    ],
)
def test_settings_out_of_range_are_named(setting, message):
    with pytest.raises(ValueError, match=message):
        usual(backbone(), **setting)

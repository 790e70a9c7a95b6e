"""amcl_fast.study.measured: running statistics anew, images that are kept; what a study's trainings leave is in
test_comparison.py."""

import pytest
import torch
from torch import nn

from amcl_fast.study import measured
from amcl_fast.study.measured import _Kept, batch_norms, recalibrated


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
    for norm in batch_norms(module).values():
        norm.running_mean.fill_(3.0)
    return module.eval()


def test_statistics_are_averages_over_batches_of_all_parts(encoder):
    """Ten images, four at a time: three batches of every third image. The encoder and its modes stay as they are."""
    images, asked = torch.randn(10, 3, 2, 2) + torch.arange(10.0).view(-1, 1, 1, 1), torch.randn(5, 3, 2, 2)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    found = recalibrated(encoder, images, "cpu", 4)(asked)
    convolved = [encoder[0](images[place::3]) for place in range(3)]
    mean = torch.stack([of.mean((0, 2, 3)) for of in convolved]).mean(0)
    variance = torch.stack([of.var((0, 2, 3)) for of in convolved]).mean(0)
    x = encoder[0](asked)
    expected = (x - mean.view(1, -1, 1, 1)) / (variance + 1e-5).sqrt().view(1, -1, 1, 1)
    torch.testing.assert_close(found, expected.relu().flatten(1))
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert not any(module.training for module in encoder.modules()) and encoder[1].momentum == 0.1


def test_an_encoder_that_fails_keeps_its_modes(encoder):
    with pytest.raises(RuntimeError):
        recalibrated(encoder, torch.randn(4, 7, 2, 2), "cpu", 4)
    assert not encoder[1].training and encoder[1].momentum == 0.1


def test_every_so_manieth_image_is_kept_where_not_all_fit(monkeypatch):
    """Ten of twelve bytes each, of which 50 bytes are kept: every third."""
    monkeypatch.setattr(measured, "_KEPT", 50)
    kept = _Kept(lambda images: images.flatten(1), 10)
    images = torch.arange(30.0).view(10, 3, 1, 1)
    features = torch.cat([kept(part.clone()) for part in images.split(4)])
    assert torch.equal(features, images.flatten(1)) and kept.every == 3
    assert kept.images[:, 0, 0, 0].tolist() == [0, 9, 18, 27] and kept.count == 4

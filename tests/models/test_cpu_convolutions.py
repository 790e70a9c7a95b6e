"""Gradients of convolutions on the CPU, which torch leaves unwritten in places."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from amcl_fast.models import BackboneConfig, build_backbone
from amcl_fast.models.cpu_convolutions import guard_convolutions


@pytest.fixture
def filled(monkeypatch):
    """What is not written is NaN."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "sides"),
    [(3, 2, 1, [(1, 1), (1, 2)]), (7, 2, 3, [(1, 1)]), (3, 3, 1, [(1, 2), (2, 2)]), (7, 4, 3, [(1, 3), (3, 3)])],
)
def test_gradients_of_images_smaller_than_the_stride(kernel, stride, padding, sides, filled):
    for side in sides:
        torch.manual_seed(0)
        conv = nn.Conv2d(16, 32, kernel, stride, padding).to(memory_format=torch.channels_last)
        guard_convolutions(conv)
        images = torch.randn(4, 16, *side, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            found = conv(images)
        upstream = torch.randn_like(found)
        exact = [t.detach().double().requires_grad_() for t in (conv.weight, images)]
        expected = F.conv2d(exact[1], exact[0], conv.bias.detach().double(), stride, padding)
        assert found.shape == expected.shape
        torch.testing.assert_close(found.double(), expected, rtol=0.05, atol=0.05)
        gradients = torch.autograd.grad(found, [conv.weight, images], upstream)
        for gradient, right in zip(gradients, torch.autograd.grad(expected, exact, upstream.double()), strict=True):
            torch.testing.assert_close(gradient.double(), right, rtol=0.05, atol=0.05)


def test_a_resnet_of_images_that_shrink_to_a_pixel_has_finite_gradients(filled):
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig("resnet18", width=16))
    images = torch.randn(8, 3, 16, 16).to(memory_format=torch.channels_last)
    for _ in range(4):  # each finds other memory
        with torch.autocast("cpu", torch.bfloat16):
            backbone(images).square().sum().backward()
        assert all(weight.grad.isfinite().all() and weight.grad.abs().max() < 1e6 for weight in backbone.parameters())
        backbone.zero_grad()


def test_float32_sees_the_images_as_they_are():
    seen = []
    conv = nn.Conv2d(4, 4, 3, 2, 1)
    guard_convolutions(conv)
    conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    conv(torch.randn(2, 4, 1, 1))
    assert seen == [(2, 4, 1, 1)]


@pytest.mark.parametrize("channels", [3, 16])
def test_images_may_be_given_by_name_or_one_alone(channels, filled):
    for kernel in (1, 3):
        conv = nn.Conv2d(channels, 8, kernel, 2, kernel // 2).to(memory_format=torch.channels_last)
        guard_convolutions(conv)
        images = torch.randn(2, channels, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            named, expected = conv(input=images), conv(images)
            assert torch.equal(named, expected) and conv(images[0]).shape == expected[0].shape
        (gradient,) = torch.autograd.grad(named.sum(), conv.weight)
        assert gradient.isfinite().all()

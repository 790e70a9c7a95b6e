import sys

import pytest
import torch
from torchvision.models import resnet18

from amcl_fast.models import BackboneConfig, build_backbone


@pytest.mark.parametrize(("name", "width", "feature_dim"), [("resnet18", 16, 128), ("resnet50", 8, 256)])
def test_small_stem_keeps_resolution_and_width_scales_features(name, width, feature_dim):
    backbone = build_backbone(BackboneConfig(name, "small", width))
    images = torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last)
    assert backbone.conv1(images).shape == (2, width, 16, 16)
    assert backbone(images).shape == (2, feature_dim) and backbone.feature_dim == feature_dim


def test_standard_resnet18_is_torchvisions_without_classifier():
    ours = build_backbone(BackboneConfig("resnet18")).eval()
    theirs = resnet18().eval()
    state = {name: value for name, value in theirs.state_dict().items() if not name.startswith("fc.")}
    ours.load_state_dict(state)
    theirs.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images))


def test_weights_are_channels_last():
    weight = build_backbone(BackboneConfig("resnet18", "small", 8)).layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_timm_model_has_features_without_classifier():
    pytest.importorskip("timm")
    backbone = build_backbone(BackboneConfig("timm/resnet10t"))
    assert backbone(torch.randn(2, 3, 32, 32)).shape == (2, backbone.feature_dim)


def test_missing_timm_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"amcl_fast\[timm\]|amcl-fast\[timm\]"):
        build_backbone(BackboneConfig("timm/resnet10t"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BackboneConfig("resnet19"), "resnet18.*got 'resnet19'"),
        (BackboneConfig("resnet18", "tiny"), "stem.*'tiny'"),
        (BackboneConfig("resnet18", width=12), "width.*12"),
        (BackboneConfig("timm/resnet10t", stem="small"), "settings of ResNets"),
    ],
)
def test_bad_settings_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(config)

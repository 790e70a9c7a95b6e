"""Encoders for views of several sizes: which take them, and what is told of those that do not."""

import pytest
import torch
from torch import nn

from amcl_fast.models import BackboneConfig, build_backbone
from amcl_fast.models.sizes import ANY_SIZE, check_sizes, takes_any_size

VIT = "vit_tiny_patch16_224"
SHAPE = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}


def vit(**arguments):
    return build_backbone(BackboneConfig(f"timm/{VIT}", size=32, arguments={**SHAPE, **arguments}))


def test_a_resnet_takes_every_size_and_stays_as_it_is():
    backbone = build_backbone(BackboneConfig("resnet18", "small", 8)).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    state = torch.get_rng_state()
    check_sizes(backbone, [32, 12])
    assert torch.equal(torch.get_rng_state(), state) and backbone.training
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())


@pytest.mark.slow
def test_a_vit_takes_other_sizes_if_it_is_built_for_them():
    check_sizes(vit(**{ANY_SIZE: True}), [32, 16])
    with pytest.raises(ValueError, match=r"got none of 16 × 16 px: .*16.*32.*arguments dynamic_img_size: true") as told:
        check_sizes(vit(), [32, 16])
    assert "\n" not in str(told.value)
    with pytest.raises(ValueError, match=r"got none of 20 × 20 px: .*divisible by patch size \(8\)\. R"):
        check_sizes(vit(**{ANY_SIZE: True}), [32, 20])


@pytest.mark.slow
def test_the_same_weights_give_the_same_features_of_images_of_its_own_size():
    fixed, any_size = vit().eval(), vit(**{ANY_SIZE: True}).eval()
    any_size.load_state_dict(fixed.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(fixed(images), any_size(images))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "takes"),
    [
        (VIT, True),
        ("swin_tiny_patch4_window7_224", True),
        ("beit_base_patch16_224", False),
        ("convnext_atto", False),  # any size, and no argument for it
        ("no_model", False),
    ],
)
def test_which_of_timms_constructors_can_be_told(name, takes):
    state = torch.get_rng_state()
    assert takes_any_size(name, 224) == takes
    assert torch.equal(torch.get_rng_state(), state)


def test_features_of_a_size_must_have_the_width_of_the_others():
    class Flat(nn.Module):
        feature_dim = 3 * 8 * 8

        def forward(self, images):
            return images.flatten(1)

    check_sizes(Flat(), [8])
    with pytest.raises(ValueError, match=r"4 × 4 px: its features are of shape \(1, 48\), not \(1, 192\)"):
        check_sizes(Flat(), [8, 4])

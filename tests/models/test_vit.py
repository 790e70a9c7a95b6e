"""Settings of timm's models, of Vision Transformers above all."""

import math

import pytest
import torch

from amcl_fast.models import BackboneConfig, MomentumEncoder, build_backbone
from amcl_fast.optim import OptimizerConfig, build_optimizer
from tests.helpers import toy_methods

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.slow

VIT = "timm/vit_tiny_patch16_224"
TINY = {"patch_size": 4, "embed_dim": 12, "depth": 3, "num_heads": 3}


def vit(size=16, **settings):
    torch.manual_seed(0)
    return build_backbone(BackboneConfig(VIT, size=size, arguments=settings.pop("arguments", TINY), **settings))


def images(size=16, n=4):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def loss_and_gradients(backbone):
    torch.manual_seed(2)
    loss = backbone(images()).square().mean()
    loss.backward()
    return loss, [p.grad for p in backbone.parameters() if p.requires_grad]


def kept(backbone):
    """Bytes that a forward pass keeps for the backward one."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
        backbone(images())
    return sum(sizes)


@pytest.mark.parametrize("drop_path", [None, 0.5])
def test_checkpointed_gradients_are_the_same_in_less_memory(drop_path):
    plain, twice = (vit(drop_path=drop_path, gradient_checkpointing=on) for on in (False, True))
    assert kept(twice) < kept(plain) / 3
    (loss, gradients), (loss_twice, gradients_twice) = map(loss_and_gradients, (plain, twice))
    assert torch.equal(loss, loss_twice) and len(gradients) > 40
    assert all(torch.equal(*pair) for pair in zip(gradients, gradients_twice, strict=True))


def test_drop_path_rises_to_its_share_and_is_for_training():
    backbone, plain = vit(drop_path=0.4), vit()
    shares = [getattr(block.drop_path1, "drop_prob", 0.0) for block in backbone.model.blocks]
    assert shares == pytest.approx([0, 0.2, 0.4])
    assert not torch.equal(backbone(images()), plain(images()))
    assert torch.equal(backbone.eval()(images()), plain.eval()(images()))


def test_the_momentum_encoder_keeps_all_branches_in_training():
    backbone = vit(drop_path=0.9)
    copies = MomentumEncoder(backbone, momentum=0.9)
    assert copies.training and torch.equal(copies(images()), vit()(images()))
    assert backbone.model.blocks[2].drop_path1.drop_prob == pytest.approx(0.9)


def test_no_drop_path_takes_timm_s_own_away():
    name = "timm/swin_tiny_patch4_window7_224"
    small = {"embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}
    for drop_path, expected in ((None, [0.1]), (0.0, [])):
        backbone = build_backbone(BackboneConfig(name, size=32, arguments=small, drop_path=drop_path))
        assert sorted({m.drop_prob for m in backbone.modules() if hasattr(m, "drop_prob")} - {0.0}) == pytest.approx(
            expected
        )


def test_fixed_positions_are_those_of_moco_v3():
    """The formula of its vits.py, one entry at a time: over a square grid, the class token's are 0."""
    backbone = vit(24, positions="fixed")
    table, side, quarter = backbone.model.pos_embed, 6, 3
    assert not table.requires_grad and table.shape == (1, 1 + side**2, 12) and not table[0, 0].any()
    for place in range(side**2):
        row, column = divmod(place, side)
        for i in range(quarter):
            omega = 1 / 10000 ** (i / quarter)
            expected = [
                math.sin(row * omega),
                math.cos(row * omega),
                math.sin(column * omega),
                math.cos(column * omega),
            ]
            assert table[0, 1 + place, i::quarter].tolist() == pytest.approx(expected, abs=1e-6)
    # Patches that lie elsewhere are told apart, and other sizes of images find their own.
    assert len(table[0].unique(dim=0)) == 1 + side**2
    dynamic = vit(24, positions="fixed", arguments={**TINY, "dynamic_img_size": True})
    assert dynamic(images(16)).shape == (4, 12)


def test_a_frozen_projection_is_initialised_as_moco_v3_s():
    projection = vit(arguments={**TINY, "embed_dim": 96}, freeze_patch_projection=True).model.patch_embed.proj
    bound = math.sqrt(6 / (3 * 4 * 4 + 96))
    weight = projection.weight
    assert not weight.requires_grad and not projection.bias.requires_grad and not projection.bias.any()
    assert 0.99 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)  # uniform; timm's are smaller
    assert vit(arguments={**TINY, "embed_dim": 96}).model.patch_embed.proj.weight.std() < 0.7 * weight.std()


@pytest.mark.parametrize("framework", ["simclr", "moco"])
def test_what_is_frozen_stays_as_it_was(framework):
    config = BackboneConfig(VIT, size=8, arguments=TINY, positions="fixed", freeze_patch_projection=True)
    settings = {"optimizer": OptimizerConfig("adamw", lr=0.1, weight_decay=0.5), "backbone": config}
    module = toy_methods.method(framework, "baseline", **settings)
    before = {name: p.clone() for name, p in module.named_parameters()}
    frozen = {f"backbone.model.{name}" for name in ("pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")}
    optimizer = build_optimizer(module, module.optimizer_config)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for name, p in module.named_parameters() if name not in frozen and "key_enc" not in name}
    toy_methods.fit(module)
    for name, p in module.named_parameters():
        if "key_encoder" not in name and "qkv.bias" not in name:
            assert torch.equal(p, before[name]) == (name in frozen), name
        elif "pos_embed" in name or "patch_embed" in name:
            assert torch.equal(p, before[name]), name


SWIN, RESNET = "timm/swin_tiny_patch4_window7_224", "timm/resnet10t"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BackboneConfig(VIT, arguments={"img_size": 32}), "arguments must leave img_size to backbone.size, .* got 32"),
        (BackboneConfig(VIT, arguments={"pretrained": True}), "must leave pretrained to backbone.weights, got True"),
        (BackboneConfig(VIT, arguments={"drop_path_rate": 0.1}), "leave drop_path_rate to backbone.drop_path, got 0.1"),
        (BackboneConfig(VIT, size=32, arguments={"dept": 3}), f"must be arguments of {VIT}, got dept$"),
        (BackboneConfig(RESNET, size=32, arguments={"dept": 3}), f"must be arguments of {RESNET}, got dept$"),
        (BackboneConfig(VIT, arguments={"num_heads": 5}), f"{VIT} with .*5}} cannot take images: dim should be"),
        (BackboneConfig("timm/vgg11", drop_path=0.1), "drop_path must be unset with timm/vgg11, which has no"),
        (BackboneConfig(VIT, arguments={**TINY, "depth": 1}, drop_path=0.1), "drop_path .* which does not apply it"),
        (BackboneConfig(VIT, drop_path=1.0), "drop_path must be at least 0 and below 1, got 1.0"),
        (BackboneConfig(RESNET, gradient_checkpointing=True), f"checkpointing must be false with {RESNET}: its BatchN"),
        (BackboneConfig(SWIN, positions="fixed"), f"positions must be learned with {SWIN}: fixed ones need a table"),
        (
            BackboneConfig(RESNET, freeze_patch_projection=True),
            f"must be false with {RESNET}, which has no convolution",
        ),
        (BackboneConfig("resnet18", gradient_checkpointing=True), "must be false with resnet18, for it is .* got True"),
        (BackboneConfig("resnet18", arguments={"depth": 3}), "arguments must be unset with resnet18, for it is a sett"),
        (BackboneConfig("resnet18", drop_path=0.1), "drop_path must be unset with resnet18, for it is .* got 0.1"),
        (BackboneConfig("resnet18", positions="fixed"), "positions must be learned with resnet18, .* got fixed"),
        (BackboneConfig("resnet18", freeze_patch_projection=True), "projection must be false with resnet18, .* True"),
    ],
)
def test_what_an_encoder_does_not_have_is_refused_by_name(config, message):
    with pytest.raises(ValueError, match=message) as told:
        build_backbone(config)
    assert len(str(told.value).splitlines()) == 1

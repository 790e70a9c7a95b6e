"""OptimizerConfig.layer_decay: the groups are timm's, whatever else divides the parameters."""

import pytest
import torch

from amcl_fast.methods import SimCLR
from amcl_fast.models import BackboneConfig, ProjectorConfig
from amcl_fast.optim import OptimizerConfig, ScheduleConfig, build_optimizer, build_scheduler
from tests.helpers import toy_methods
from tests.helpers.running import method

optim = pytest.importorskip("timm.optim")
pytestmark = pytest.mark.slow

VIT = {"patch_size": 4, "embed_dim": 12, "depth": 3, "num_heads": 3}
BACKBONES = {
    "vit": BackboneConfig("timm/vit_tiny_patch16_224", size=8, arguments=VIT),
    "frozen": BackboneConfig(
        "timm/vit_tiny_patch16_224", size=8, arguments=VIT, positions="fixed", freeze_patch_projection=True
    ),
    "convnext": BackboneConfig("timm/test_convnext", size=32),
}


def rates(module, **settings):
    """Learning rate and weight decay of every parameter that is trained, by name."""
    optimizer = build_optimizer(module, OptimizerConfig(**{"name": "adamw", "lr": 2.0, **settings}), scale=0.5)
    names = {id(p): name for name, p in module.named_parameters()}
    found = [
        (names[id(p)], (group["lr"], group["weight_decay"]))
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    assert len(found) == len(dict(found))
    return dict(found)


@pytest.mark.parametrize("decay_all", [True, False])
@pytest.mark.parametrize("name", BACKBONES)
def test_rates_are_those_of_timm_s_own_function(name, decay_all):
    module = toy_methods.method("simclr", backbone=BACKBONES[name])
    model = module.backbone.model
    groups = optim.param_groups_layer_decay(model, layer_decay=0.7, weight_decay=0.1)
    expected = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    found = rates(module, layer_decay=0.7, weight_decay=0.1, decay_all=decay_all)
    assert found.keys() == {name for name, p in module.named_parameters() if p.requires_grad}
    assert len({rate for rate, _ in found.values()}) >= 3
    for parameter, (rate, decay) in found.items():
        p = module.get_parameter(parameter)
        assert rate == pytest.approx(expected.pop(id(p), 1.0))
        assert parameter.startswith("backbone.") or rate == 1.0
        assert decay == (0.0 if not decay_all and (p.ndim <= 1 or parameter.endswith("bias")) else 0.1)
    assert not expected


def test_rates_of_a_vit_by_hand():
    found = rates(toy_methods.method("simclr", backbone=BACKBONES["vit"]), layer_decay=0.5)
    by_hand = {"patch_embed.proj.weight": 0.125, "cls_token": 0.125, "pos_embed": 0.125}
    by_hand |= {"blocks.0.attn.qkv.weight": 0.25, "blocks.1.mlp.fc1.bias": 0.5, "blocks.2.norm1.weight": 1.0}
    assert {name: found[f"backbone.model.{name}"][0] for name in by_hand} == by_hand


def test_it_works_beside_other_rates_of_their_own():
    """Rates of biases are lowered too; a constant one is the predictor's, whose place no layer has."""
    module = toy_methods.method("simsiam", "baseline", backbone=BACKBONES["vit"], predictor_lr=3.0)
    config = OptimizerConfig("lars", lr=2.0, bias_lr=0.5, layer_decay=0.5)
    optimizer = build_optimizer(module, config, constant_lr=module.constant_lr)
    scheduler = build_scheduler(optimizer, ScheduleConfig(), steps=4, epochs=1)
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    bias, weight = (of[id(module.get_parameter(f"backbone.model.blocks.0.mlp.fc1.{n}"))] for n in ("bias", "weight"))
    assert (bias["lr"], bias["adapt"], weight["lr"], weight["adapt"]) == (0.125, False, 0.5, True)
    assert of[id(module.predictor.input.weight)]["lr"] == 3.0
    assert optimizer.param_groups[0]["lr"] == 2.0  # the rate that is logged
    optimizer.step()
    scheduler.step()
    assert bias["lr"] / 0.125 == pytest.approx(weight["lr"] / 0.5) == pytest.approx(optimizer.param_groups[0]["lr"] / 2)
    assert weight["lr"] < 0.5 and of[id(module.predictor.input.weight)]["lr"] == 3.0


def test_a_step_is_smaller_below():
    """SGD without momentum and decay: the change of a weight is its rate times its gradient."""
    sgd = OptimizerConfig("sgd", lr=1.0, momentum=0.0, weight_decay=0.0, layer_decay=0.5)
    module = toy_methods.method("simclr", backbone=BACKBONES["vit"])
    optimizer = build_optimizer(module, sgd)
    module.loss([torch.randn(8, 3, 8, 8), torch.randn(8, 3, 8, 8)]).backward()
    weights = {0.25: module.backbone.model.blocks[0].mlp.fc1.weight, 1.0: module.projector.input.weight}
    before = {rate: weight.detach().clone() for rate, weight in weights.items()}
    optimizer.step()
    for rate, weight in weights.items():
        torch.testing.assert_close(weight, before[rate] - rate * weight.grad)


@pytest.mark.parametrize(
    ("backbone", "decay", "message"),
    [
        (BackboneConfig("resnet18", width=8), 0.5, "layer_decay must be unset with ResNetEncoder, which .* got 0.5"),
        (torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()), 0.5, "Sequ"),
        (BACKBONES["vit"], 0.0, "layer_decay must be above 0 and at most 1, got 0.0"),
        (BACKBONES["vit"], 1.5, "layer_decay must be above 0 and at most 1, got 1.5"),
    ],
)
def test_what_has_no_layers_is_refused_with_the_settings(backbone, decay, message):
    with pytest.raises(ValueError, match=message):
        SimCLR(
            method().criterion,
            backbone=backbone,
            projector=ProjectorConfig(2, 5, 6),
            optimizer=OptimizerConfig(layer_decay=decay),
        )

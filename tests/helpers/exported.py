"""Encoders of every kind, in run directories as trainings leave them."""

from dataclasses import asdict

import torch

from amcl_fast.methods import SimCLR
from amcl_fast.models import BackboneConfig, ProjectorConfig
from tests.helpers.running import method

_OF_CAN = {"patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 3, "global_pool": "avg", "fc_norm": False}
BACKBONES = {
    "standard": BackboneConfig("resnet18"),
    "bottleneck": BackboneConfig("resnet50"),
    "small": BackboneConfig("resnet18", stem="small"),
    "narrow": BackboneConfig("resnet18", stem="small", width=8),
    "timm": BackboneConfig("timm/resnet10t"),
    "timm, measured": BackboneConfig("timm/mobilenetv3_small_050", size=32),
    "timm, sized": BackboneConfig("timm/vit_tiny_patch16_224", size=32),
    "timm, sized, as given": BackboneConfig(
        "timm/vit_tiny_patch16_224",
        size=32,
        arguments={"patch_size": 8, "embed_dim": 24, "depth": 2, "norm_layer": "layernorm"},
        positions="fixed",
        freeze_patch_projection=True,
        drop_path=0.1,
        gradient_checkpointing=True,
    ),
    "timm, sized, of CAN": BackboneConfig("timm/vit_tiny_patch16_224", size=32, positions="fixed", arguments=_OF_CAN),
}


def checkpoint(folder, config, **changes):
    """A run directory with a checkpoint as `amcl-fast pretrain` leaves it; returns it and its encoder."""
    torch.manual_seed(0)
    module = SimCLR(method().criterion, backbone=config, projector=ProjectorConfig(2, 5, 6))
    with torch.no_grad():  # running statistics that are not those of a new network
        module.backbone.train()(torch.randn(8, 3, 32, 32))
    settings = {
        "amcl_fast": "0.1.0",
        "run": folder.name,
        "recipe": "demo",
        "model": {
            "class_path": "amcl_fast.methods.SimCLR",
            "init_args": {"backbone": {name: value for name, value in asdict(config).items() if value is not None}},
        },
        "data": {"root": "cifar10", "size": 32, "mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.1]},
    }
    content = {
        "state_dict": module.state_dict(),
        "global_step": 12,
        "loops": {"fit_loop": {"epoch_progress": {"total": {"processed": 3}}}},
        "settings": settings,
        **changes,
    }
    path = folder / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    return folder, module.backbone.eval()

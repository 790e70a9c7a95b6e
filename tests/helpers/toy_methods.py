"""All frameworks at a size for tests."""

import lightning as L
import torch

from amcl_fast import (
    AdaptiveTemperature,
    BarlowTwinsLoss,
    MoCoLoss,
    PerplexityTemperature,
    SimCLRLoss,
    SimSiamLoss,
)
from amcl_fast.methods import CAN, BarlowTwins, MoCo, SimCLR, SimSiam
from amcl_fast.methods.can import Drawn
from amcl_fast.models import BackboneConfig, ProjectorConfig
from amcl_fast.models.decoder import DecoderConfig
from amcl_fast.models.masked import Masks
from tests.helpers.fake_data import FakeDataModule

HEADS, DIM, BATCH = 2, 6, 8
KINDS = ["baseline", "amcl"]
# 16 patches of 2 pixels, or another number of them.
_SMALL = {"patch_size": 2, "embed_dim": 12, "depth": 2, "num_heads": 2, "global_pool": "avg", "fc_norm": False}
VIT = BackboneConfig("timm/vit_tiny_patch16_224", size=8, arguments=_SMALL | {"dynamic_img_size": True})


def method(framework, kind="amcl", *, batch=BATCH, **settings):
    """A method on a tiny encoder, the same weights at every call; `batch` is the global one.

    `kind`: one of `KINDS`, or perplexity for a framework with negatives.
    """
    torch.manual_seed(0)

    def temperature(constant, dim=DIM):
        if kind == "perplexity":
            return PerplexityTemperature(constant, 0.6)
        return constant if kind == "baseline" else AdaptiveTemperature(dim, 16, 0.1, 1.0, score="cosine")

    # A constant temperature takes all negatives, an adaptive one the hardest.
    negatives = {"negatives": "softmax", "include_positive": True} if kind == "baseline" else {"top_k": 4}
    common = {
        "backbone": BackboneConfig("resnet18", "small", 8),
        "projector": ProjectorConfig(HEADS, 5, DIM, layers=3 if framework in ("simsiam", "barlow") else 2),
        **settings,
    }
    if framework == "simclr":
        return SimCLR(SimCLRLoss(temperature(0.2), gather=True, **negatives), **common)
    if framework == "moco":
        return MoCo(MoCoLoss(temperature(0.2), **negatives), **{"queue_size": 4 * batch, **common})
    if framework == "simsiam":
        return SimSiam(SimSiamLoss(temperature(1.0)), **{"predictor_hidden_dim": 3, **common})
    if framework == "can":
        parts = {"backbone": VIT, "decoder": DecoderConfig(8, 1, 2)}
        return CAN(SimCLRLoss(temperature(0.2), gather=True, **negatives), **common | parts | settings)
    assert framework == "barlow"
    return BarlowTwins(BarlowTwinsLoss(temperature(1.0, batch), gather=True), **common)


def drawn_of_content(images):
    """As `CAN.draw`, masks and noise that depend on an image alone, not on the others of its batch."""
    patches = images[0, 0].numel() // 4  # of VIT
    order = (1e3 * images.flatten(1)[:, :patches]).sin().argsort(1)
    masks = Masks(*(places.sort(1).values for places in order.chunk(2, dim=1)))
    level = 0.05 * images.flatten(1)[:, 0].cos().abs()
    return Drawn(masks, level.view(-1, 1, 1, 1) * (1e3 * images).sin(), level)


def undrawn(module):
    """`module`, which draws nothing at random."""
    if isinstance(module, CAN):
        module.draw = drawn_of_content
    return module


def fit(module, data=None, **settings):
    """Train on the CPU, nothing else; returns the trainer."""
    settings = {"max_epochs": 1, "accelerator": "cpu", "log_every_n_steps": 1, **settings}
    trainer = L.Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, datamodule=data or FakeDataModule())
    return trainer

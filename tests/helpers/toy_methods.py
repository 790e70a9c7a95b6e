"""All frameworks at a size for tests."""

import lightning as L
import torch

from amcl_fast import AdaptiveTemperature, BarlowTwinsLoss, MoCoLoss, SimCLRLoss, SimSiamLoss
from amcl_fast.methods import BarlowTwins, MoCo, SimCLR, SimSiam
from amcl_fast.models import BackboneConfig, ProjectorConfig
from tests.helpers.fake_data import FakeDataModule

HEADS, DIM, BATCH = 2, 6, 8
KINDS = ["baseline", "amcl"]


def method(framework, kind="amcl", *, batch=BATCH, **settings):
    """A method on a tiny encoder, the same weights at every call; `batch` is the global one."""
    torch.manual_seed(0)

    def temperature(constant, dim=DIM):
        return constant if kind == "baseline" else AdaptiveTemperature(dim, 16, 0.1, 1.0, score="cosine")

    # A constant temperature takes all negatives, an adaptive one the hardest.
    negatives = {"negatives": "softmax", "include_positive": True} if kind == "baseline" else {"top_k": 4}
    common = {
        "backbone": BackboneConfig("resnet18", "small", 8),
        "projector": ProjectorConfig(HEADS, 5, DIM, layers=2 if framework in ("simclr", "moco") else 3),
        **settings,
    }
    if framework == "simclr":
        return SimCLR(SimCLRLoss(temperature(0.2), gather=True, **negatives), **common)
    if framework == "moco":
        return MoCo(MoCoLoss(temperature(0.2), **negatives), **{"queue_size": 4 * batch, **common})
    if framework == "simsiam":
        return SimSiam(SimSiamLoss(temperature(1.0)), **{"predictor_hidden_dim": 3, **common})
    assert framework == "barlow"
    return BarlowTwins(BarlowTwinsLoss(temperature(1.0, batch), gather=True), **common)


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

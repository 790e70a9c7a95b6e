"""Tiny trainings for the tests of the trainer."""

import lightning as L
import torch

from amcl_fast import AdaptiveTemperature, SimCLRLoss
from amcl_fast.callbacks import Checkpoint, ExactResume, Guard
from amcl_fast.methods import SimCLR
from amcl_fast.models import BackboneConfig, ProjectorConfig
from tests.helpers.fake_data import FakeDataModule


class Stop(Exception):
    """Ends a training at a given step, as an error would."""

    @classmethod
    def at(cls, step):
        class StopCallback(L.Callback):
            def on_train_batch_end(self, trainer, *_):
                if trainer.global_step == step:
                    raise cls

        return StopCallback()


def method(**settings):
    """AMCL-SimCLR on a tiny encoder, the same weights at every call."""
    torch.manual_seed(0)
    if "criterion" not in settings:
        temperature = AdaptiveTemperature(6, tau_min=0.1, tau_max=1.0, score="cosine")
        settings["criterion"] = SimCLRLoss(temperature, negatives="topk_softmax", top_k=4, backend="reference")
    return SimCLR(
        backbone=BackboneConfig("resnet18", "small", 8),
        projector=ProjectorConfig(heads=2, hidden_dim=5, dim=6),
        **settings,
    )


def fit(folder, module=None, data=None, *, checkpoint=None, guard=None, extra=(), ckpt_path=None, **settings):
    """Train on the CPU with the callbacks of a run except kNN; returns the trainer."""
    callbacks = [checkpoint or Checkpoint(), guard or Guard(), ExactResume(), *extra]
    defaults = {"max_epochs": 2, "logger": False, "log_every_n_steps": 2, "enable_progress_bar": False}
    trainer = L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        callbacks=callbacks,
        enable_model_summary=False,
        **{**defaults, **settings},
    )
    data = data or FakeDataModule()
    trainer.fit(module or method(), datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return trainer

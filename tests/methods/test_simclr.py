import lightning as L
import pytest
import torch
from fake_data import FakeDataModule

from amcl_fast import AdaptiveTemperature, SimCLRLoss
from amcl_fast.methods import SimCLR
from amcl_fast.models import BackboneConfig, ProjectorConfig
from amcl_fast.optim import OptimizerConfig, ScheduleConfig


def criterion():
    temperature = AdaptiveTemperature(6, tau_min=0.1, tau_max=1.0, score="cosine")
    return SimCLRLoss(temperature, negatives="topk_softmax", top_k=4, backend="reference")


def method(**settings):
    torch.manual_seed(0)
    return SimCLR(
        settings.pop("criterion", None) or criterion(),
        backbone=BackboneConfig("resnet18", "small", 8),
        projector=ProjectorConfig(heads=2, hidden_dim=5, dim=6),
        **settings,
    )


def fit(module, data=None, **settings):
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


def test_views_pass_the_encoder_together_and_reach_the_loss_apart():
    module = method().double()
    views = torch.randn(2, 8, 3, 8, 8, dtype=torch.float64)
    seen = []
    module.criterion.register_forward_pre_hook(lambda _, z: seen.extend(z))
    module.contrast(tuple(views))
    expected = module.embed(views.flatten(0, 1))
    assert [z.shape for z in seen] == [(8, 2, 6)] * 2
    torch.testing.assert_close(torch.cat(seen), expected)


def test_loss_is_float32_while_the_encoder_is_not():
    module = method()
    dtypes = {}
    module.backbone.register_forward_hook(lambda _, __, out: dtypes.update(features=out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module.contrast(tuple(torch.randn(2, 8, 3, 8, 8)))
    assert loss.dtype == torch.float32 and dtypes == {"features": torch.bfloat16}


def test_training_moves_encoder_heads_and_temperature():
    module = method(optimizer=OptimizerConfig(lr=0.1))
    before = {name: value.clone() for name, value in module.named_parameters()}
    fit(module)
    still = [name for name, value in module.named_parameters() if torch.equal(value, before[name])]
    assert not still


def test_baseline_differs_by_its_temperature_only():
    module = method(criterion=SimCLRLoss(0.2, negatives="softmax", include_positive=True, backend="reference"))
    adaptive = {name for name, _ in method().named_parameters()}
    assert adaptive - {name for name, _ in module.named_parameters()} == {
        "criterion.temperature.offset",
        *(f"criterion.temperature.phi.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")),
    }
    fit(module)


def test_metrics_are_logged():
    trainer = fit(method(), gradient_clip_val=1.0)
    names = set(trainer.callback_metrics)
    assert {"loss", "lr", "gradient_norm", "tau_positive_mean", "tau_negative_at_bound"} <= names


def test_nothing_is_logged_between_logging_steps(monkeypatch):
    calls = []
    monkeypatch.setattr(SimCLR, "log", lambda self, name, *a, **k: calls.append(self.trainer.global_step))
    fit(method(), data=FakeDataModule(steps=7), log_every_n_steps=3)
    assert set(calls) == {3, 6}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped(precision):
    module = method(optimizer=OptimizerConfig(lr=1.0, momentum=0.0, weight_decay=0.0))
    before = [p.detach().clone() for p in module.parameters()]
    fit(module, data=FakeDataModule(steps=1), gradient_clip_val=1e-3, precision=precision)
    moved = [p.detach() - old for p, old in zip(module.parameters(), before, strict=True)]
    norm = torch.stack([difference.norm() for difference in moved]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-2)


def test_accumulation_sums_gradients_of_batches():
    """Two batches of one accumulated step: the mean of their gradients, each with its own negatives."""
    module = method(optimizer=OptimizerConfig(lr=1.0, momentum=0.0, weight_decay=0.0))
    other = method()
    data = FakeDataModule(steps=2)
    for views, _ in data.train_dataloader():
        (other.contrast(views) / 2).backward()
    expected = {name: p.detach() - p.grad for name, p in other.named_parameters()}
    trainer = fit(module, data=FakeDataModule(steps=2), accumulate_grad_batches=2)
    assert trainer.global_step == 1
    for name, p in module.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], msg=name)


def test_schedule_covers_the_training():
    rates = []

    class Rates(L.Callback):
        def on_train_batch_start(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    schedule = ScheduleConfig(warmup_epochs=1)
    fit(method(optimizer=OptimizerConfig(lr=0.1), schedule=schedule), max_epochs=2, callbacks=[Rates()])
    assert rates[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1]) and rates[-1] < 0.02


def test_epochs_without_end_are_refused():
    with pytest.raises(ValueError, match=r"trainer\.max_epochs"):
        fit(method(), max_epochs=-1)


def test_three_views_are_refused():
    with pytest.raises(ValueError, match=r"two views.*got 3"):
        method().contrast(tuple(torch.randn(3, 4, 3, 8, 8)))


def test_compiled_training_gives_the_same_numbers(monkeypatch):
    # The graph is captured as for inductor, whose C++ takes a minute to build.
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile(function, backend="eager"))
    views = tuple(torch.randn(2, 8, 3, 8, 8))
    eager, compiled = method(), method(compile=True)
    assert compiled.encode_views is not compiled.embed
    losses = [module.contrast(views) for module in (eager, compiled)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[1], losses[0])
    for (name, a), (_, b) in zip(eager.named_parameters(), compiled.named_parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-5, msg=name)
    assert compiled.state_dict().keys() == eager.state_dict().keys()

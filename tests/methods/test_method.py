"""What all frameworks share: training, precision, clipping, accumulation, compilation, exact resume."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import nn

from amcl_fast.callbacks import Checkpoint
from amcl_fast.methods import Method, MoCo, SimCLR
from amcl_fast.optim import OptimizerConfig, ScheduleConfig
from amcl_fast.recipes import FRAMEWORKS
from tests.helpers import running
from tests.helpers.fake_data import FakeDataModule
from tests.helpers.running import Stop
from tests.helpers.toy_methods import KINDS, fit, method, undrawn

pytestmark = pytest.mark.slow

every_framework = pytest.mark.parametrize("framework", FRAMEWORKS)
every_kind = pytest.mark.parametrize("kind", KINDS)


def views(n=8, seed=1, **settings):
    return tuple(torch.randn(2, n, 3, 8, 8, generator=torch.Generator().manual_seed(seed), **settings))


@every_framework
def test_loss_is_float32_while_the_encoder_is_not(framework):
    module = method(framework)
    dtypes = {}
    product = next(part for part in module.backbone.modules() if isinstance(part, nn.Linear | nn.Conv2d))
    product.register_forward_hook(lambda _, __, out: dtypes.update(features=out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module.loss_of_views(views())
    assert loss.dtype == torch.float32 and dtypes == {"features": torch.bfloat16}


@every_framework
@every_kind
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_every_precision_trains_everything(framework, kind, precision):
    module = method(framework, kind, optimizer=OptimizerConfig(lr=0.1))
    before = {name: value.clone() for name, value in module.named_parameters()}
    trainer = fit(module, precision=precision)
    assert torch.isfinite(trainer.callback_metrics["loss"])
    assert trainer.callback_metrics["loss"].dtype == (torch.float64 if precision == "64-true" else torch.float32)
    still = [name for name, value in module.named_parameters() if torch.equal(value.float(), before[name])]
    assert not still


@every_framework
@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", torch.bfloat16), ("16-true", torch.float16)])
def test_weights_in_half_precision_train(framework, precision, dtype):
    """Where small updates are lost in rounding, so that not everything moves."""
    module = method(framework, optimizer=OptimizerConfig(lr=0.1))
    weight = next(module.backbone.parameters())
    before = weight.clone()
    trainer = fit(module, precision=precision)
    assert torch.isfinite(trainer.callback_metrics["loss"])
    weight = next(module.backbone.parameters())
    assert weight.dtype == dtype
    assert not torch.equal(weight.float(), before)


@every_framework
def test_baseline_differs_by_its_temperature_only(framework):
    names = [{name for name, _ in method(framework, kind).named_parameters()} for kind in KINDS]
    assert names[1] - names[0] == {
        "criterion.temperature.offset",
        *(f"criterion.temperature.phi.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")),
    }


@every_framework
def test_metrics_are_logged(framework):
    trainer = fit(method(framework), gradient_clip_val=1.0)
    names = {"loss", "lr", "gradient_norm", "tau_positive_mean", "similarity_positive"}
    assert names <= set(trainer.callback_metrics)
    assert framework == "simsiam" or "tau_negative_at_bound" in trainer.callback_metrics


@pytest.mark.parametrize("fused", [False, True])
def test_the_gradient_norm_is_without_the_scale_of_half_precision(monkeypatch, fused):
    """A fused optimiser takes it out by itself, after the norm was read; others have it taken out before."""
    module = method("simclr")
    for weight in module.parameters():
        weight.grad = torch.full_like(weight, 8.0 if fused else 1.0)
    plugin = SimpleNamespace(scaler=SimpleNamespace(get_scale=lambda: 8.0))
    monkeypatch.setattr(type(module), "trainer", SimpleNamespace(precision_plugin=plugin), raising=False)
    norm = module._norm_of_gradients(SimpleNamespace(_step_supports_amp_scaling=fused))
    assert float(norm) == pytest.approx(sum(weight.numel() for weight in module.parameters()) ** 0.5)


def test_nothing_is_logged_between_logging_steps(monkeypatch):
    calls = []
    monkeypatch.setattr(SimCLR, "log", lambda self, name, *a, **k: calls.append(self.trainer.global_step))
    fit(method("simclr"), data=FakeDataModule(steps=7), log_every_n_steps=3)
    assert set(calls) == {3, 6}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped(precision):
    module = method("simclr", optimizer=OptimizerConfig(lr=1.0, momentum=0.0, weight_decay=0.0))
    before = [p.detach().clone() for p in module.parameters()]
    fit(module, data=FakeDataModule(steps=1), gradient_clip_val=1e-3, precision=precision)
    moved = [p.detach() - old for p, old in zip(module.parameters(), before, strict=True)]
    norm = torch.stack([difference.norm() for difference in moved]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_gradients_are_clipped_by_value(precision):
    module = method("simclr", optimizer=OptimizerConfig(lr=1.0, momentum=0.0, weight_decay=0.0))
    before = [p.detach().clone() for p in module.parameters()]
    settings = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value", "precision": precision}
    fit(module, data=FakeDataModule(steps=1), **settings)
    moved = torch.cat([(p.detach() - old).flatten() for p, old in zip(module.parameters(), before, strict=True)])
    assert moved.abs().max().item() == pytest.approx(1e-3, rel=1e-2)
    assert (moved.abs() > 0.99e-3).sum() > 10


@every_framework
@every_kind
def test_accumulation_sums_gradients_of_batches(framework, kind):
    """Two batches of one accumulated step: the mean of their gradients, each with its own negatives."""
    sgd = OptimizerConfig(lr=1.0, momentum=0.0, weight_decay=0.0)
    module, other = undrawn(method(framework, kind, optimizer=sgd)), undrawn(method(framework, kind))
    for batch, _ in FakeDataModule(steps=2).train_dataloader():
        (other.loss_of_views(batch) / 2).backward()
        other.on_after_backward()  # MoCo's second batch meets the keys of the first
    expected = {name: p.detach() - p.grad for name, p in other.named_parameters() if p.requires_grad}
    trainer = fit(module, data=FakeDataModule(steps=2), accumulate_grad_batches=2)
    assert trainer.global_step == 1
    for name, value in expected.items():
        torch.testing.assert_close(module.get_parameter(name).detach(), value, msg=name)


def test_schedule_covers_the_training():
    rates = []

    class Rates(L.Callback):
        def on_train_batch_start(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    schedule = ScheduleConfig(warmup_epochs=1)
    fit(method("simclr", optimizer=OptimizerConfig(lr=0.1), schedule=schedule), max_epochs=2, callbacks=[Rates()])
    assert rates[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1]) and rates[-1] < 0.02


def test_epochs_without_end_are_refused():
    with pytest.raises(ValueError, match=r"trainer\.max_epochs"):
        fit(method("simclr"), max_epochs=-1)


@every_framework
def test_compiled_training_gives_the_same_numbers(framework, monkeypatch):
    # The graph is captured as for inductor, whose C++ takes a minute to build.
    compile, compiled_functions = torch.compile, []

    def fake(function):
        compiled_functions.append(function)
        return compile(function, backend="eager")

    monkeypatch.setattr(torch, "compile", fake)
    eager, compiled = method(framework), method(framework, compile=True)
    assert len(compiled_functions) == {"moco": 2, "simsiam": 2, "can": 2}.get(framework, 1)
    losses = [undrawn(module).loss_of_views(views()) for module in (eager, compiled)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[1], losses[0])
    for (name, a), (_, b) in zip(eager.named_parameters(), compiled.named_parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-5, msg=name)
    assert compiled.state_dict().keys() == eager.state_dict().keys()


@every_framework
def test_a_stopped_run_goes_on_exactly(framework, tmp_path):
    """Saved inside the second epoch, with half a ring of new keys in MoCo's queue."""
    options = {"queue_size": 40} if framework == "moco" else {}

    def train(folder, **settings):
        checkpoint = Checkpoint(every_n_steps=3)
        module = method(framework, **options)
        return running.fit(folder, module, checkpoint=checkpoint, **settings).lightning_module

    whole = train(tmp_path / "whole")
    with pytest.raises(Stop):
        train(tmp_path / "stopped", extra=[Stop.at(7)])
    path = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == 6
    resumed = train(tmp_path / "stopped", ckpt_path=str(path))
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    if isinstance(resumed, MoCo):
        assert resumed.queue.written == 8 * 16


@pytest.mark.parametrize(("old", "new"), [("contrast", "loss_of_views"), ("temperatures", "pairs_of_views")])
@pytest.mark.parametrize("base", [Method, SimCLR])
def test_an_override_by_the_name_of_before_is_refused(base, old, new):
    mixin = type("Mixin", (), {old: lambda self, views: None})
    for bases, members in (((base,), {old: lambda self, views: None}), ((mixin, base), {})):
        with pytest.raises(TypeError, match=rf"^Mine\.{old} must be named {new}, got the name of version 0\.1\.0$"):
            type("Mine", bases, members)
    assert type("Mine", (base,), {new: lambda self, views: None})

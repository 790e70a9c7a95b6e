import copy
import sys
import types
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from torch import nn

from amcl_fast import AdaptiveTemperature, LearnedTemperature, PerplexityTemperature, SimCLRLoss, capabilities
from amcl_fast.models import MultiHeadProjector, ProjectorConfig
from amcl_fast.optim import (
    LARS,
    OptimizerConfig,
    ScheduleConfig,
    build_optimizer,
    build_scheduler,
    lr_factor,
    lr_scale,
)
from tests.helpers.toy_methods import method


def quadratic_steps(optimizer, params, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        sum((p**2).sum() for p in params).backward()
        optimizer.step()


def lars_by_hand(weights, steps, lr, momentum, weight_decay, trust_coefficient):
    """One tensor at a time, as in the paper."""
    buffers = [torch.zeros_like(w) for w in weights]
    for _ in range(steps):
        for w, buffer in zip(weights, buffers, strict=True):
            update = 2 * w + weight_decay * w
            norm, update_norm = w.norm(), update.norm()
            trust = trust_coefficient * norm / update_norm if norm > 0 and update_norm > 0 else 1.0
            buffer.mul_(momentum).add_(trust * update)
            w.sub_(lr * buffer)
    return weights


def test_lars_follows_its_definition():
    torch.manual_seed(0)
    start = [torch.randn(4, 3, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)]
    params = [nn.Parameter(w.clone()) for w in start]
    settings = {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.01, "trust_coefficient": 0.02}
    quadratic_steps(LARS(params, **settings), params)
    for p, expected in zip(params, lars_by_hand(start, 3, **settings), strict=True):
        torch.testing.assert_close(p.detach(), expected)


def test_a_tensor_is_a_rate_of_lars_as_it_is_of_torchs_own():
    torch.manual_seed(0)
    start = torch.randn(6)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    for parameter, lr in ((ours, torch.tensor(0.25)), (theirs, 0.25)):
        quadratic_steps(LARS([parameter], lr=lr), [parameter])
    assert torch.equal(ours, theirs)
    for wrong in (torch.tensor(-0.25), torch.tensor([0.25, 0.5])):
        with pytest.raises((TypeError, ValueError), match=r"^lr must be "):
            LARS([ours], lr=wrong)


def test_lars_without_adaptation_is_sgd():
    torch.manual_seed(0)
    start = torch.randn(6)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    quadratic_steps(LARS([{"params": [ours], "adapt": False}], lr=0.1, momentum=0.9), [ours])
    quadratic_steps(torch.optim.SGD([theirs], lr=0.1, momentum=0.9), [theirs])
    torch.testing.assert_close(ours, theirs)


def test_lars_resumes_from_its_state():
    torch.manual_seed(0)
    start = torch.randn(6)
    straight, resumed = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    quadratic_steps(LARS([straight], lr=0.1), [straight], steps=4)
    first = LARS([resumed], lr=0.1)
    quadratic_steps(first, [resumed], steps=2)
    second = LARS([resumed], lr=0.1)
    second.load_state_dict(first.state_dict())
    quadratic_steps(second, [resumed], steps=2)
    assert torch.equal(straight, resumed)


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay"])
def test_lars_names_bad_settings(name):
    with pytest.raises(ValueError, match=f"{name}.*-1"):
        LARS([nn.Parameter(torch.zeros(1))], **{"lr": 0.1, name: -1})


def model():
    return nn.ModuleDict(
        {
            "conv": nn.Conv2d(3, 4, 3),
            "norm": nn.BatchNorm2d(4),
            "heads": MultiHeadProjector(4, ProjectorConfig(2, 3, 5)),
            "temperature": AdaptiveTemperature(5, score="cosine"),
        }
    )


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw"])
def test_a_learned_scalar_temperature_is_never_decayed(name):
    """Decay would pull τ to 1."""
    module = nn.ModuleDict({"head": nn.Linear(2, 2), "temperature": LearnedTemperature(0.5)})
    optimizer = build_optimizer(module, OptimizerConfig(name, decay_all=True, weight_decay=0.5))
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    before = [p.clone() for p in module.parameters()]
    optimizer.step()
    weight, _, log_tau = (not torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True))
    assert weight and not log_tau


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw"])
def test_the_state_of_an_offset_that_was_a_scalar_is_gone_on_with(name):
    weights = []
    for scalar in (False, True):
        torch.manual_seed(0)
        module = model()
        optimizer = build_optimizer(module, OptimizerConfig(name))
        for step in range(2):
            for p in module.parameters():
                p.grad = torch.full_like(p, 1.0 + step)
            optimizer.step()
            if scalar and step == 0:
                state = copy.deepcopy(optimizer.state_dict())
                old = [s for s in state["state"].values() if all(t.numel() == 1 for t in s.values())]
                for of_one_number in old:
                    of_one_number |= {key: t.reshape(()) for key, t in of_one_number.items()}
                assert len(old) == 1
                optimizer.load_state_dict(state)
        weights.append([p.detach() for p in module.parameters()])
    for expected, found in zip(*weights, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw"])
def test_biases_norms_and_offset_are_exempt_from_decay(name):
    module = model()
    decayed, exempt = build_optimizer(module, OptimizerConfig(name, decay_all=False)).param_groups
    names = {id(p): n for n, p in module.named_parameters()}
    assert sorted(names[id(p)] for p in exempt["params"]) == [
        "conv.bias",
        "heads.input.bias",
        "heads.output.bias",
        "norm.bias",
        "norm.weight",
        "temperature.offset",
        "temperature.phi.0.bias",
        "temperature.phi.2.bias",
    ]
    assert exempt["weight_decay"] == 0 and decayed["weight_decay"] == 5e-4
    assert len(decayed["params"]) + len(exempt["params"]) == len(list(module.parameters()))
    if name == "lars":
        assert decayed["adapt"] and not exempt["adapt"]


def test_biases_may_have_their_own_rate():
    """Barlow Twins' 0.2 and 0.0048 for batches of 256."""
    config = OptimizerConfig("lars", lr=0.2, bias_lr=0.0048, lr_scaling="linear")
    weights, biases = build_optimizer(model(), config, scale=lr_scale(config, 2048)).param_groups
    assert (weights["lr"], biases["lr"]) == (pytest.approx(1.6), pytest.approx(0.0384))
    with pytest.raises(ValueError, match=r"bias_lr.*decay_all"):
        build_optimizer(model(), OptimizerConfig("sgd", bias_lr=0.1))


@pytest.mark.parametrize(("rule", "factor"), [("none", 1), ("linear", 16), ("sqrt", 4)])
def test_rates_scale_with_the_batch(rule, factor):
    assert lr_scale(OptimizerConfig(lr_scaling=rule), 4096) == factor


def test_constant_rates_come_last_and_escape_the_schedule():
    config = OptimizerConfig("sgd", lr=0.1, decay_all=False)
    optimizer = build_optimizer(model(), config, scale=2.0, constant_lr={"heads": 0.3})
    scheduler = build_scheduler(optimizer, ScheduleConfig(), steps=4, epochs=1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.2, 0.6, 0.6])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5e-4, 0, 5e-4, 0]
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.1, 0.6, 0.6])


def with_temperature(temperature):
    """As a method has it."""
    return nn.ModuleDict({"head": nn.Linear(2, 2), "criterion": SimCLRLoss(temperature, negatives="softmax")})


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw"])
def test_the_temperature_may_have_a_rate_and_a_decay_of_its_own(name):
    module = with_temperature(AdaptiveTemperature(2, score="cosine"))
    own = {"temperature_lr": 0.4, "temperature_weight_decay": 0.25}
    config = OptimizerConfig(name, lr=0.1, bias_lr=0.2, weight_decay=0.5, decay_all=False, **own)
    optimizer = build_optimizer(module, config, scale=2.0)
    scheduler = build_scheduler(optimizer, ScheduleConfig(), steps=4, epochs=1)
    names = {id(p): name for name, p in module.named_parameters()}
    groups = [
        ([names[id(p)].removeprefix("criterion.temperature.") for p in group["params"]], group["weight_decay"])
        for group in optimizer.param_groups
    ]
    assert groups == [
        (["head.weight"], 0.5),
        (["head.bias"], 0.0),
        (["phi.0.weight", "phi.2.weight"], 0.25),
        (["offset", "phi.0.bias", "phi.2.bias"], 0.0),
    ]
    for share in (1.0, 0.8535533905932737):
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
            [0.2 * share, 0.4 * share, 0.8 * share, 0.8 * share]
        )
        optimizer.step()
        scheduler.step()
    alone = build_optimizer(module, replace(config, temperature_weight_decay=None)).param_groups
    assert [group["weight_decay"] for group in alone] == [0.5, 0.0, 0.5, 0.0]
    decay = build_optimizer(module, replace(config, temperature_lr=None, bias_lr=None)).param_groups
    assert [group.get("lr") for group in decay] == [0.1] * 4


def test_a_temperature_without_settings_of_its_own_is_one_of_the_others():
    """So that the states of optimisers that were saved before there were these go on."""
    module = with_temperature(AdaptiveTemperature(2))
    for decay_all, groups in ((True, 1), (False, 2)):
        assert len(build_optimizer(module, OptimizerConfig("adamw", decay_all=decay_all)).param_groups) == groups


@pytest.mark.parametrize(
    ("temperature", "setting", "message"),
    [
        (0.1, "temperature_lr", "a constant temperature, which has no parameters"),
        (None, "temperature_lr", "a constant temperature, which has no parameters"),
        (PerplexityTemperature(), "temperature_weight_decay", "a PerplexityTemperature, which has no parameters"),
        (LearnedTemperature(), "temperature_weight_decay", "a LearnedTemperature, which is never decayed"),
    ],
)
def test_settings_of_a_temperature_that_does_not_learn_are_refused(temperature, setting, message):
    module = nn.Linear(2, 2) if temperature is None else with_temperature(temperature)
    with pytest.raises(ValueError, match=rf"^optimizer\.{setting} must be unset with {message}, got 0\.3$"):
        build_optimizer(module, OptimizerConfig(**{setting: 0.3}))
    if isinstance(temperature, LearnedTemperature):
        assert build_optimizer(module, OptimizerConfig(temperature_lr=0.3)).param_groups[-1]["lr"] == 0.3


@pytest.mark.parametrize("framework", ["barlow", "can"])
def test_the_settings_of_a_temperature_are_found_wrong_before_training(framework):
    config = OptimizerConfig("sgd", lr=0.1, temperature_lr=0.2)
    groups = build_optimizer(method(framework, "amcl", optimizer=config), config).param_groups
    assert [(group["lr"], len(group["params"])) for group in groups][1:] == [(0.2, 5)]
    with pytest.raises(ValueError, match=r"optimizer\.temperature_lr must be unset .* got 0\.2"):
        method(framework, "baseline", optimizer=config)
    for wrong in (-1.0, float("inf")):
        with pytest.raises(ValueError, match=r"optimizer\.temperature_weight_decay must be finite and not negative"):
            OptimizerConfig(temperature_weight_decay=wrong)


def test_released_recipe_decays_everything():
    (group,) = build_optimizer(model(), OptimizerConfig("sgd")).param_groups
    assert group["weight_decay"] == 5e-4 and group["momentum"] == 0.9


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_kernels_unless_they_are_forbidden(name):
    assert build_optimizer(model(), OptimizerConfig(name)).defaults["fused"]
    plain = build_optimizer(model(), OptimizerConfig(name), fused=False)
    assert plain.defaults["foreach"] and not plain.defaults["fused"]


@pytest.mark.parametrize(
    ("name", "stand_in"),
    [("sgd", torch.optim.SGD), ("lamb", torch.optim.AdamW), ("adamw", torch.optim.AdamW)],
)
def test_apex_falls_back_to_torch_and_says_so(name, stand_in, monkeypatch):
    status = capabilities.Status(False, "amp_C is missing")
    monkeypatch.setattr(capabilities, "apex_status", lambda: status)
    with pytest.warns(UserWarning, match=rf"torch's {stand_in.__name__} runs instead"):
        optimizer = build_optimizer(model(), OptimizerConfig(name, implementation="apex"))
    assert type(optimizer) is stand_in


@pytest.mark.parametrize(("name", "kind"), [("sgd", "FusedSGD"), ("lamb", "FusedLAMB")])
def test_apex_is_used_where_it_works(name, kind, monkeypatch):
    made = types.SimpleNamespace(
        FusedSGD=type("FusedSGD", (torch.optim.SGD,), {}),
        FusedLAMB=type("FusedLAMB", (torch.optim.AdamW,), {}),
    )
    monkeypatch.setattr(capabilities, "apex_status", lambda: capabilities.Status(True, "works"))
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.optimizers", made)
    optimizer = build_optimizer(model(), OptimizerConfig(name, lr=0.5, implementation="apex"))
    assert type(optimizer).__name__ == kind and optimizer.param_groups[0]["lr"] == 0.5


def test_unknown_scaling_is_named():
    with pytest.raises(ValueError, match=r"lr_scaling.*'cubic'"):
        lr_scale(OptimizerConfig(lr_scaling="cubic"), 256)


@pytest.mark.parametrize("settings", [{"name": "adam"}, {"implementation": "cuda"}])
def test_unknown_optimizers_are_named(settings):
    with pytest.raises(ValueError, match=next(iter(settings.values()))):
        build_optimizer(model(), OptimizerConfig(**settings))


def test_lr_factor_warms_up_then_follows_half_a_cosine():
    factors = [lr_factor(i, total=14, warmup=4) for i in range(15)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[9] == pytest.approx(0.5) and factors[14] == pytest.approx(0.0)
    assert all(a >= b for a, b in pairwise(factors[4:]))


def test_schedule_per_epoch_is_torchs_cosine():
    def rates(build):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.06)
        scheduler = build(optimizer)
        out = []
        for _ in range(8):
            out.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return out

    ours = rates(lambda o: build_scheduler(o, ScheduleConfig(interval="epoch"), steps=800, epochs=8))
    theirs = rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=8))
    assert ours == pytest.approx(theirs)


@pytest.mark.parametrize("settings", [{"warmup_epochs": 5}, {"warmup_epochs": -1}, {"interval": "day"}])
def test_impossible_schedules_are_named(settings):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ValueError, match="schedule"):
        build_scheduler(optimizer, ScheduleConfig(**settings), steps=50, epochs=5)


@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("warmup_epochs", [0.0, 0.5, 1.75])
def test_a_schedule_that_is_loaded_goes_on_with_its_own_length(interval, warmup_epochs):
    """For any stop and any new length the rate at a position is that of the new schedule from there on."""
    per_epoch = 3

    def build(epochs):
        config = OptimizerConfig(lr=0.3, decay_all=False, bias_lr=0.2)
        optimizer = build_optimizer(model(), config, constant_lr={"heads": 0.6})
        schedule = ScheduleConfig(warmup_epochs=warmup_epochs, interval=interval)
        return optimizer, build_scheduler(optimizer, schedule, steps=epochs * per_epoch, epochs=epochs)

    def rates(optimizer):
        return [group["lr"] for group in optimizer.param_groups]

    def walk(optimizer, scheduler, steps):
        seen = [rates(optimizer)]
        for _ in range(steps):
            optimizer.step()
            scheduler.step()
            seen.append(rates(optimizer))
        return seen

    def positions(epochs):
        return epochs * (per_epoch if interval == "step" else 1)

    for old in (2, 3, 5):
        for stop in range(positions(old) + 1):
            stopped = build(old)
            walk(*stopped, stop)
            for new in (2, 4, 7):
                whole = walk(*build(new), positions(new))
                optimizer, scheduler = build(new)
                optimizer.load_state_dict(stopped[0].state_dict())
                scheduler.load_state_dict(stopped[1].state_dict())
                assert walk(optimizer, scheduler, positions(new) - stop) == whole[stop:] or stop > positions(new)
                assert scheduler.get_last_lr() == rates(optimizer)


def test_the_warmup_is_as_long_as_its_epochs_are():
    """A training of three and a half epochs of four steps."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build_scheduler(optimizer, ScheduleConfig(warmup_epochs=2), steps=14, epochs=Fraction(14, 4))
    seen = []
    for _ in range(9):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx([*(i / 8 for i in range(1, 9)), 1.0])

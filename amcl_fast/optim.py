"""Optimisers and the learning-rate schedule."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .extras import extras_named
from .setting_types import check_fields, real

__all__ = [
    "LARS",
    "OptimizerConfig",
    "ScheduleConfig",
    "build_optimizer",
    "build_scheduler",
    "lr_factor",
    "lr_scale",
]


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimiser and its settings.

    Attributes:
        name: sgd, lars, adamw, or lamb (apex's; AdamW stands in for it where apex does not work).
        lr: peak learning rate.
        bias_lr: peak learning rate of biases, scales and offsets where these are not decayed; None: `lr`.
        lr_scaling: whether the learning rates are those of batches of 256 images, to be multiplied by B/256
            (`linear`) or √(B/256) (`sqrt`) for B images per optimiser step over all processes.
        momentum: of sgd and lars.
        betas: of adamw and lamb.
        weight_decay: L2 for sgd and lars, decoupled for adamw.
        decay_all: also decay biases and normalisation parameters. LARS never does. A learned scalar temperature is
            never decayed.
        trust_coefficient: of lars.
        implementation: `auto` and `torch` are torch's fused kernels where device and dtype allow, its foreach
            ones elsewhere; `apex` is apex's FusedSGD or FusedLAMB where they work, torch's with a warning
            where they do not.
        layer_decay: factor on the learning rate of a layer of the encoder for each layer that comes after it, by the
            groups that timm makes of its models (`group_matcher`); the last layer, the heads and φ have the full
            rate. None: all layers have it.
        temperature_lr: peak learning rate of what the criterion's temperature learns, φ or log τ, its biases included;
            None: as everything else.
        temperature_weight_decay: weight decay of φ, where `weight_decay` would count; None: that.

    Raises:
        TypeError: a setting of another type.
        ValueError: one out of range, or of no effect beside the others.
    """

    name: Literal["sgd", "lars", "adamw", "lamb"] = "sgd"
    lr: float = 0.06
    bias_lr: float | None = None
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 5e-4
    decay_all: bool = True
    trust_coefficient: float = 1e-3
    implementation: Literal["auto", "torch", "apex"] = "auto"
    layer_decay: float | None = None
    temperature_lr: float | None = None
    temperature_weight_decay: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, "optimizer")
        for name in ("lr", "bias_lr", "weight_decay", "temperature_lr", "temperature_weight_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"optimizer.{name} must be finite and not negative, got {value}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"optimizer.momentum must be at least 0 and below 1, got {self.momentum}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas must be at least 0 and below 1, got {list(self.betas)}")
        if not 0 < self.trust_coefficient < math.inf:
            raise ValueError(f"optimizer.trust_coefficient must be positive and finite, got {self.trust_coefficient}")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"optimizer.layer_decay must be above 0 and at most 1, got {self.layer_decay}")
        if self.bias_lr is not None and self.decay_all and self.name != "lars":
            raise ValueError(
                "optimizer.bias_lr must be unset unless optimizer.decay_all is false or optimizer.name is lars, got "
                f"{self.bias_lr}"
            )


class LARS(Optimizer):
    """SGD with layer-wise adaptive rates (You et al., 2017, arXiv 1708.03888, as SimCLR uses it).

    For each tensor w with gradient g: u = g + weight_decay·w; if its group has `adapt`, u is scaled by
    trust_coefficient·‖w‖/‖u‖ (by 1 where either norm is 0); buffer = momentum·buffer + u; w −= lr·buffer.
    Runs on lists of tensors (foreach) and never waits for the device.

    Args:
        params: parameters or groups; a group may carry `adapt: False` and its own `weight_decay`.
        lr: a number, or a tensor of no dimensions, as torch's own optimisers take it.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
    ) -> None:
        rate = lr.item() if isinstance(lr, Tensor) and lr.dim() == 0 else lr
        for name, value in (("lr", rate), ("momentum", momentum), ("weight_decay", weight_decay)):
            real(name, value, 0)
        if not real("trust_coefficient", trust_coefficient, 0):
            raise ValueError(f"trust_coefficient must be positive and finite, got {trust_coefficient}")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "adapt": True,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One update; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(params, group)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        try:
            updates = torch._foreach_add(grads, params, alpha=group["weight_decay"])
        except RuntimeError as error:
            if any(grad.layout is not torch.strided for grad in grads):
                raise TypeError("gradients must be dense with LARS, got a sparse one (of sparse=True)") from error
            raise
        if group["adapt"]:
            norms = torch.stack(torch._foreach_norm(params))
            update_norms = torch.stack(torch._foreach_norm(updates))
            trust = group["trust_coefficient"] * norms / update_norms
            trust = torch.where((norms > 0) & (update_norms > 0), trust, 1.0)
            torch._foreach_mul_(updates, list(trust.unbind()))
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, updates)
        torch._foreach_add_(params, buffers, alpha=-group["lr"])


def lr_scale(config: OptimizerConfig, batch_size: int) -> float:
    """Factor on the learning rates of `config` for optimiser steps of `batch_size` images over all processes."""
    if config.lr_scaling == "none":
        return 1.0
    ratio = batch_size / 256
    return ratio if config.lr_scaling == "linear" else math.sqrt(ratio)


def build_optimizer(
    module: nn.Module,
    config: OptimizerConfig,
    *,
    fused: bool = True,
    scale: float = 1.0,
    constant_lr: Mapping[str, float] | None = None,
) -> Optimizer:
    """The optimiser of `config` over all trainable parameters of `module`.

    Args:
        module: what to train.
        config: see `OptimizerConfig`.
        fused: permit torch's fused kernels. They unscale gradients themselves, so they exclude clipping under
            a gradient scaler.
        scale: factor on all learning rates, see `lr_scale`.
        constant_lr: learning rates that the schedule leaves alone, by prefix of the parameters' names.

    Raises:
        ValueError: as `check_temperature` of what `module` has as its `criterion`.
    """
    check_temperature(getattr(module, "criterion", None), config)
    groups = _param_groups(module, config, scale, constant_lr or {})
    optimizer = _optimizer(groups, config, config.lr * scale, fused)
    optimizer.register_load_state_dict_post_hook(_take_old_scalars)
    return optimizer


def _optimizer(groups: list[dict[str, Any]], config: OptimizerConfig, lr: float, fused: bool) -> Optimizer:
    if config.name == "lars":
        return LARS(groups, lr, config.momentum, config.weight_decay, config.trust_coefficient)
    if config.implementation == "apex" or config.name == "lamb":
        optimizer = _apex_optimizer(groups, config, lr)
        if optimizer is not None:
            return optimizer
    params = [p for group in groups for p in group["params"]]
    fused = fused and all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in params)
    kernels = {"fused": True} if fused else {"foreach": True}
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr, momentum=config.momentum, weight_decay=config.weight_decay, **kernels)
    return torch.optim.AdamW(groups, lr, betas=config.betas, weight_decay=config.weight_decay, **kernels)


def _take_old_scalars(optimizer: Optimizer) -> None:
    """φ's offset was 0-dim once, and its state in old checkpoints is so still."""
    for p, state in optimizer.state.items():
        for name, value in state.items():
            if name != "step" and isinstance(value, Tensor) and value.dim() == 0 and p.shape == (1,):
                state[name] = value.reshape(1)


def check_temperature(criterion: nn.Module | None, config: OptimizerConfig) -> None:
    """That what `config` says of a temperature has something to be about.

    Raises:
        ValueError: the temperature of `criterion` has no parameters that are trained, or decay of them, and is to have
            a rate or a decay of its own.
    """
    temperature = getattr(criterion, "temperature", None)
    parameters = temperature.named_parameters() if isinstance(temperature, nn.Module) else ()
    names = [name for name, p in parameters if p.requires_grad]
    kind = type(temperature).__name__ if isinstance(temperature, nn.Module) else "constant temperature"
    for name in ("temperature_lr", "temperature_weight_decay"):
        value = getattr(config, name)
        if value is None:
            continue
        if not names:
            raise ValueError(f"optimizer.{name} must be unset with a {kind}, which has no parameters, got {value}")
        if name == "temperature_weight_decay" and names == ["log_tau"]:
            raise ValueError(f"optimizer.{name} must be unset with a {kind}, which is never decayed, got {value}")


def _param_groups(
    module: nn.Module, config: OptimizerConfig, scale: float, constant_lr: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Scheduled groups before constant ones, and in each those that are decayed before biases, scales, offsets.

    What the temperature learns comes after all that are scheduled with it, if it has settings of its own.
    """
    own_lr, own_decay = config.temperature_lr, config.temperature_weight_decay
    apart = own_lr is not None or own_decay is not None
    separate = config.name == "lars" or not config.decay_all
    backbone: Any = module.backbone if config.layer_decay is not None else None
    shares = {} if config.layer_decay is None else layer_shares(backbone, config.layer_decay)
    groups: dict[tuple[str, bool, bool, float], dict[str, Any]] = {}
    for name, p in module.named_parameters():
        if p.requires_grad:
            constant = next((prefix for prefix in constant_lr if name.startswith(f"{prefix}.")), "")
            plain = (separate and (p.ndim <= 1 or name.endswith("bias"))) or name.endswith("log_tau")
            share = shares.get(name.removeprefix("backbone."), 1.0)
            own = apart and name.startswith("criterion.temperature.")
            # Full rates come first: the rate of the first group is logged.
            groups.setdefault((constant, own, plain, -share), {"params": []})["params"].append(p)
    for (constant, own, plain, less), group in groups.items():
        biases = plain and config.bias_lr is not None
        if biases or less != -1:
            group["lr"] = -less * scale * (config.bias_lr if biases else config.lr)  # type: ignore[operator]
        if own and own_lr is not None:
            group["lr"] = scale * own_lr
        if own and own_decay is not None:
            group["weight_decay"] = own_decay
        if plain:
            group["weight_decay"] = 0.0
            if config.name == "lars":
                group["adapt"] = False
        if constant:
            group |= {"lr": constant_lr[constant] * scale, "constant_lr": True}
    return [groups[key] for key in sorted(groups)]


def layer_shares(backbone: nn.Module, decay: float) -> dict[str, float]:
    """Share of the learning rate that each parameter of an encoder has, by name: decay to the power of the number of
    layers after its own, as `timm.optim.param_groups_layer_decay` has it.

    Raises:
        ValueError: decay outside (0, 1], or the encoder does not say what its layers are.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"optimizer.layer_decay must be above 0 and at most 1, got {decay}")
    model: Any = getattr(backbone, "model", backbone)
    if not hasattr(model, "group_matcher"):
        raise ValueError(
            f"optimizer.layer_decay must be unset with {type(model).__name__}, which does not say what its layers are "
            f"(timm's models do, by group_matcher), got {decay}"
        )
    with extras_named("layer_decay"):
        from timm.models import group_parameters
    layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    last = max(layers.values())
    return {f"model.{name}": decay ** (last - layer) for name, layer in layers.items()}


def _apex_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig, lr: float) -> Optimizer | None:
    """apex's optimiser, or None after a warning that says what runs instead."""
    from .capabilities import apex_status

    status = apex_status()
    stand_in = "torch's SGD" if config.name == "sgd" else "torch's AdamW"
    if config.name == "adamw":
        warnings.warn(f"apex is used for sgd and lamb only; {stand_in} runs instead", stacklevel=3)
        return None
    if not status.available:
        warnings.warn(f"apex cannot be used ({status.reason}); {stand_in} runs instead", stacklevel=3)
        return None
    from apex.optimizers import FusedLAMB, FusedSGD

    if config.name == "sgd":
        return FusedSGD(groups, lr=lr, momentum=config.momentum, weight_decay=config.weight_decay)
    return FusedLAMB(groups, lr=lr, betas=config.betas, weight_decay=config.weight_decay)


@dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up, then half a cosine down to zero.

    Attributes:
        warmup_epochs: length of the warm-up, fractions allowed.
        interval: change the rate every optimiser `step`, or every `epoch` (the released recipe).

    Raises:
        TypeError, ValueError: a setting of another type, or none of the values that there are.
    """

    warmup_epochs: float = 0.0
    interval: Literal["step", "epoch"] = "step"

    def __post_init__(self) -> None:
        check_fields(self, "schedule")
        real("schedule.warmup_epochs", self.warmup_epochs, 0)


def lr_factor(position: int, total: int, warmup: int) -> float:
    """Factor on the peak rate at `position` of `total`: (position + 1)/warmup up to the peak, then cosine."""
    if position < warmup:
        return (position + 1) / warmup
    progress = (position - warmup) / max(1, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class _Schedule(LambdaLR):
    """A LambdaLR whose rates, once it has loaded a position, are its own there: it may be longer than it was."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        factors = [factor(self.last_epoch) for factor in self.lr_lambdas]
        self._last_lr = [base * factor for base, factor in zip(self.base_lrs, factors, strict=True)]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


def build_scheduler(optimizer: Optimizer, config: ScheduleConfig, *, steps: int, epochs: float | Fraction) -> LambdaLR:
    """Scheduler of `config` for a training of `steps` optimiser steps in `epochs` epochs, the last one perhaps a part.

    Groups of parameters with a constant learning rate keep it. A training that is resumed with another length has the
    rates of the new schedule from its first step.

    Raises:
        ValueError: warm-up negative or as long as the training.
    """
    begun = max(1, math.ceil(epochs))
    if not 0 <= config.warmup_epochs < begun:
        raise ValueError(
            f"model.schedule.warmup_epochs must be at least 0 and less than the {begun} epochs of the training, "
            f"got {config.warmup_epochs}"
        )
    by_step = config.interval == "step" and steps > 0
    total = steps if by_step else begun
    warmup = round(config.warmup_epochs * (steps / epochs if by_step else 1))

    def scheduled(position: int) -> float:
        return lr_factor(position, total, warmup)

    def constant(position: int) -> float:
        return 1.0

    return _Schedule(optimizer, [constant if g.get("constant_lr") else scheduled for g in optimizer.param_groups])

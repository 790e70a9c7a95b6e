"""Fine-tuning: an encoder and a linear classifier on it, trained together on labelled images."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..distributed import apart, exchange, in_step, world
from ..models.modes import floating_dtype, in_mode
from ..optim import OptimizerConfig, ScheduleConfig, build_optimizer, build_scheduler, layer_shares
from ..setting_types import check_value, real, whole
from .evaluation import ImageBatches
from .features import NothingToEvaluateError, Progress, silent
from .linear import TOP5_CLASSES, check_rates


@dataclass(frozen=True)
class FineTuning:
    """How encoder and classifier are trained: by `optimizer`, linear warm-up, then half a cosine to zero.

    Attributes:
        optimizer: sgd, with momentum 0.9, or adamw.
        rates: learning rates for batches of 256 images, which are multiplied by batch/256; each is a training of its
            own.
        epochs: of each training.
        warmup_epochs: fractions allowed.
        weight_decay: of adamw not of biases, scales and offsets.
        layer_decay: factor on the rate of a layer for each that comes after it, as of `OptimizerConfig`; None: none.
        seed: of random numbers that the encoder draws. The classifier begins at zero.

    Raises:
        ValueError: a setting out of range.
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    rates: tuple[float, ...] = (0.01, 0.03, 0.1)
    epochs: int = 30
    warmup_epochs: float = 0.0
    weight_decay: float = 0.0
    layer_decay: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in ("sgd", "adamw"):
            raise ValueError(f"optimizer must be sgd or adamw, got {self.optimizer!r}")
        check_rates(self.rates)
        whole("epochs", self.epochs, 1)
        real("weight_decay", self.weight_decay, 0)
        if real("warmup_epochs", self.warmup_epochs, 0) >= self.epochs:
            raise ValueError(f"warmup_epochs must be at least 0 and below epochs, got {self.warmup_epochs}")
        if self.layer_decay is not None and not 0 < real("layer_decay", self.layer_decay, 0) <= 1:
            raise ValueError(f"layer_decay must be above 0 and at most 1, got {self.layer_decay}")
        check_value("seed", self.seed, int)
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be from 0 to {2**32 - 1}, got {self.seed}")


def usual(backbone: nn.Module, **given: Any) -> FineTuning:
    """What papers do with an encoder, but for what is given and not None.

    With batch normalisation that is SGD without weight decay, of which SimCLR's rate is 0.05 (arXiv 2002.05709,
    appendix B.5; 30 epochs with a tenth of the labels). Without, as ViTs are, AdamW with weight decay 0.05, a twentieth
    of the epochs to warm up, and layer decay 0.75 where the encoder says what its layers are (MAE, arXiv 2111.06377,
    table 9, whose rate is 5e-4).

    Raises:
        ValueError: a setting out of range, or a layer decay of an encoder that does not say what its layers are.
    """
    normalised = any(isinstance(module, _BatchNorm) for module in backbone.modules())
    named = {name: value for name, value in given.items() if value is not None}
    settings = FineTuning(**{"optimizer": "sgd" if normalised else "adamw", **named})
    if settings.optimizer == "adamw":
        layers = hasattr(getattr(backbone, "model", backbone), "group_matcher")
        own: dict[str, Any] = {
            "rates": (2.5e-4, 5e-4, 1e-3),
            "warmup_epochs": settings.epochs / 20,
            "weight_decay": 0.05,
            "layer_decay": 0.75 if layers else None,
        }
        settings = replace(settings, **{name: value for name, value in own.items() if name not in named})
    if settings.layer_decay is not None:
        layer_shares(backbone, settings.layer_decay)
    return settings


@dataclass(frozen=True)
class FineTuned:
    """What fine-tuning has come to.

    Attributes:
        settings: how it was done.
        top1: accuracy in percent on the queries for each rate.
        top5: the same for the five best classes; None with fewer than 10 classes.
        best: index of the rate with the highest top1, the lowest such rate. It is chosen on the queries themselves.
        encoder: weights and buffers of the best encoder, by name, on the CPU.
        weight, bias: of its classifier, (K, d) and (K,).
        queries: how many there were.
    """

    settings: FineTuning
    top1: tuple[float, ...]
    top5: tuple[float, ...] | None
    best: int
    encoder: dict[str, Tensor]
    weight: Tensor
    bias: Tensor
    queries: int

    def as_dict(self) -> dict[str, Any]:
        """All of it but the weights, as plain values."""
        settings = {**vars(self.settings)}
        rates = settings.pop("rates")
        return {
            "top1": self.top1[self.best],
            "top5": self.top5[self.best] if self.top5 else None,
            "rate": rates[self.best],
            "chosen_on": "the queries themselves",
            **settings,
            "sweep": {"rates": list(rates), "top1": list(self.top1), "top5": list(self.top5) if self.top5 else None},
        }


def fine_tune(
    backbone: nn.Module,
    train: Callable[[], ImageBatches],
    queries: Iterable[tuple[Tensor, Tensor]],
    settings: FineTuning,
    *,
    num_classes: int,
    batch_size: int,
    device: torch.device | str = "cpu",
    shared: bool = False,
    progress: Progress = silent,
    told: Callable[[float, float], object] = lambda rate, top1: None,
) -> FineTuned:
    """Train encoder and classifier for every rate, from the same start and on the same batches, and measure them.

    The same call gives the same bits on a CPU. On a GPU cuDNN is asked for kernels that do.

    Args:
        backbone: images (n, 3, H, W) to features (n, d). It is moved to `device`, and keeps its weights.
        train: makes the labelled images, augmented anew every epoch; every call those of the first epoch again.
        queries: (images, labels) to measure on, without augmentation.
        settings: see there.
        num_classes: number of classes K.
        batch_size: images of a batch of `train`, of all processes together.
        device: where everything runs.
        shared: `train` gives this process's part of every batch, as many as in every other, and `queries` its part,
            which may be none. Gradients are of the whole batch; batch normalisation sees one process's part of it, and
            its running statistics are averaged. All processes of the group call this and get the same.
        progress: wraps the loop over the steps of all rates.
        told: called with each rate and its top1, once it is known.

    Raises:
        ValueError: a loader yields nothing.
        ElsewhereError: another process has failed.
    """
    shared = shared and world()[1] > 1
    with apart(shared):
        backbone = copy.deepcopy(backbone).to(device)
        start = {name: value.clone() for name, value in backbone.state_dict().items()}
        steps = _Steps(train, len(settings.rates), settings.epochs, shared)
    found: list[tuple[float, float]] = []
    kept: dict[str, Tensor] = {}
    classifier: _Classifier | None = None
    count = 0
    cuda = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(cuda), _repeatable():
        for step, (images, labels) in enumerate(progress(steps, "steps of fine-tuning")):
            if step % steps.of_one == 0:
                torch.manual_seed(settings.seed + (world()[0] if shared else 0))
                rate = settings.rates[step // steps.of_one]
                backbone.load_state_dict(start)
                with torch.no_grad(), in_mode(backbone, training=False):
                    width = backbone(images[:1].to(device, floating_dtype(backbone))).shape[1]
                classifier = _Classifier(backbone, nn.Linear(width, num_classes), device)
                training = _Training(classifier, settings, rate, batch_size, steps.of_one, shared)
            assert classifier is not None
            training.step(images, labels)
            if (step + 1) % steps.of_one == 0:
                right, count = _hits(classifier, queries, shared)
                found.append((100 * right[0] / count, 100 * right[1] / count))
                told(rate, found[-1][0])
                if _best(found, settings.rates) == len(found) - 1:
                    kept = {name: value.cpu().clone() for name, value in classifier.state_dict().items()}
    top1, top5 = zip(*found, strict=True)
    return FineTuned(
        settings=settings,
        top1=top1,
        top5=top5 if num_classes >= TOP5_CLASSES else None,
        best=_best(found, settings.rates),
        encoder={name.removeprefix("backbone."): value for name, value in kept.items() if name.startswith("backbone.")},
        weight=kept["head.weight"],
        bias=kept["head.bias"],
        queries=count,
    )


class _Classifier(nn.Module):
    """An encoder with a linear classifier that is zero."""

    def __init__(self, backbone: nn.Module, head: nn.Linear, device: torch.device | str) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head.to(device, floating_dtype(backbone))
        self.device = device
        for parameter in head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, K) of images (n, 3, H, W)."""
        return self.head(self.backbone(images.to(self.device, floating_dtype(self.backbone))))


class _Training:
    """Steps of one training."""

    def __init__(
        self, classifier: _Classifier, settings: FineTuning, rate: float, batch_size: int, steps: int, shared: bool
    ) -> None:
        self._classifier, self._shared = classifier, shared
        self._parameters = [p for p in classifier.parameters() if p.requires_grad]
        config = OptimizerConfig(
            name=settings.optimizer,
            lr=rate,
            weight_decay=settings.weight_decay,
            decay_all=settings.optimizer == "sgd",
            layer_decay=settings.layer_decay,
        )
        self._optimizer = build_optimizer(classifier, config, scale=batch_size / 256)
        schedule = ScheduleConfig(settings.warmup_epochs)
        self._schedule = build_scheduler(self._optimizer, schedule, steps=steps, epochs=settings.epochs)

    def step(self, images: Tensor, labels: Tensor) -> None:
        with apart(self._shared), in_mode(self._classifier, training=True), torch.enable_grad():
            loss = F.cross_entropy(self._classifier(images).float(), labels.to(self._classifier.device))
            self._optimizer.zero_grad()
            loss.backward()
        if self._shared:
            _average([p.grad for p in self._parameters if p.grad is not None])
        self._optimizer.step()
        self._schedule.step()


class _Steps:
    """Batches of all epochs of one training after the other."""

    def __init__(self, train: Callable[[], ImageBatches], trainings: int, epochs: int, shared: bool) -> None:
        self._train, self._trainings, self._epochs, self._shared = train, trainings, epochs, shared
        self._first: ImageBatches | None = train()
        self.of_one = epochs * len(self._first)
        if not self.of_one:
            raise ValueError("train must yield at least one batch, got none")

    def __len__(self) -> int:
        return self._trainings * self.of_one

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self._trainings):
            with apart(self._shared):
                loader, self._first = self._first or self._train(), None
            for _ in range(self._epochs):
                batches = iter(loader)
                while True:
                    with apart(self._shared):
                        batch = next(batches, None)
                    if batch is None:
                        break
                    yield batch


@torch.no_grad()
def _hits(
    classifier: _Classifier, queries: Iterable[tuple[Tensor, Tensor]], shared: bool
) -> tuple[tuple[int, int], int]:
    """How many queries are told right, by the best class and by the five best, and how many there are."""
    if shared:  # as of one batch normalisation over the whole batch, but for the variance between the parts
        _average([buffer for buffer in classifier.buffers() if buffer.is_floating_point()])
    right, count = torch.zeros(2, dtype=torch.int64), 0

    def every() -> Iterator[None]:
        nonlocal count
        for images, labels in queries:
            logits = classifier(images).float().cpu()
            hits = logits.topk(min(5, logits.shape[1])).indices == labels.cpu()[:, None]
            hits &= torch.isfinite(logits).all(1, keepdim=True)
            right.add_(torch.stack([hits[:, 0].sum(), hits.any(1).sum()]))
            count += len(labels)
            yield

    with in_mode(classifier, training=False):
        for _ in in_step(every()) if shared else every():
            pass
    parts = exchange((*right.tolist(), count)) if shared else [(*right.tolist(), count)]
    best, five, every_query = (sum(part) for part in zip(*parts, strict=True))
    if not every_query:
        raise NothingToEvaluateError("queries must have at least one image, got none")
    return (best, five), every_query


def _best(found: Sequence[tuple[float, float]], rates: Sequence[float]) -> int:
    return max(range(len(found)), key=lambda index: (found[index][0], -rates[index]))


def _average(tensors: Sequence[Tensor]) -> None:
    """Means over all processes, in place."""
    if not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= world()[1]
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


@contextmanager
def _repeatable() -> Iterator[None]:
    """Have cuDNN take kernels whose sums come in the same order every time."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before

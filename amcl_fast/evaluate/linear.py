"""Linear probe: classifiers on frozen features, one per learning rate, all trained in one pass."""

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..distributed import alike, apart, exchange, together, world
from ..setting_types import WIDEST, fits, real, whole, written
from .features import Progress, check_features, silent

RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Learning rates at a batch of 256. Features of different encoders differ in scale by as much."""

TOP5_CLASSES = 10
"""Top-5 accuracy says nothing with fewer classes."""

_CHUNK_ELEMENTS = 1 << 24
"""Logits in memory at a time when accuracies are counted: 64 MiB."""

_MEETING = 64
"""Steps after which processes tell each other whether theirs have failed."""

_GATHERED = 1 << 22
"""Features that processes gather at a time: 16 MiB."""


class Batches(Protocol):
    """One epoch of (features (n, d), labels (n,) int64) at every `iter`, of `len` batches."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...

    def __len__(self) -> int: ...


class ShuffledFeatures:
    """Batches of features that were computed once, in a new order every epoch; the last one may be smaller.

    Args:
        features: (N, d).
        labels: (N,) int64.
        batch_size: rows of a batch.
        seed: of the orders.
        shared: features and labels are this process's part, of any size, none included, and batches are drawn from
            those of all processes, which all take the same ones, in step: what one process would take that has all
            parts, in order of rank. The rows of some batches at a time are gathered.
    """

    def __init__(
        self, features: Tensor, labels: Tensor, batch_size: int, seed: int = 0, *, shared: bool = False
    ) -> None:
        self._features, self._labels, self._batch_size = features, labels, batch_size
        self._generator = torch.Generator().manual_seed(seed)
        sizes = exchange(len(labels)) if shared else [len(labels)]
        self._rows, self._shared = sum(sizes), len(sizes) > 1
        self._first = sum(sizes[: world()[0]]) if self._shared else 0

    def __len__(self) -> int:
        return -(-self._rows // self._batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(self._rows, generator=self._generator).to(self._features.device)
        if not self._shared:
            for rows in order.split(self._batch_size):
                yield self._features[rows], self._labels[rows]
            return
        at_once = max(1, _GATHERED // (self._batch_size * max(self._features.shape[1], 1)))
        for several in order.split(at_once * self._batch_size):
            features, labels = self._gather(several)
            yield from zip(features.split(self._batch_size), labels.split(self._batch_size), strict=True)

    def _gather(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of all processes: each puts its own in place, and the sum with the zeros of the others is the whole."""
        with together():
            own = rows - self._first
            mine = ((own >= 0) & (own < len(self._labels))).nonzero().squeeze(1)
            dtype = torch.promote_types(self._features.dtype, torch.float32)
            features = self._features.new_zeros(len(rows), self._features.shape[1], dtype=dtype)
            labels = self._labels.new_zeros(len(rows))
            features[mine] = self._features[own[mine]].to(dtype)
            labels[mine] = self._labels[own[mine]]
        dist.all_reduce(features)
        dist.all_reduce(labels)
        return features, labels


@dataclass(frozen=True)
class ProbeResult:
    """Accuracies of a linear probe.

    Attributes:
        rates: learning rates, as given.
        top1: accuracy in percent on the queries of each rate's classifier.
        top5: the same for the five best classes; None with fewer than 10 classes.
        best: index of the rate with the highest top1, the lowest such rate. It is chosen on the very queries
            that it is measured on, as is the custom, so it flatters the encoder a little; `top1` holds them all.
        weight: (R, classes, d) of the classifiers.
        bias: (R, classes).
    """

    rates: tuple[float, ...]
    top1: tuple[float, ...]
    top5: tuple[float, ...] | None
    best: int
    weight: Tensor
    bias: Tensor


def linear_probe(
    train: Batches,
    queries: Tensor,
    query_labels: Tensor,
    *,
    num_classes: int,
    rates: Sequence[float] = RATES,
    epochs: int = 100,
    batch_size: int = 256,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    device: torch.device | str = "cpu",
    shared: bool = False,
    progress: Progress = silent,
) -> ProbeResult:
    """Train a linear classifier per learning rate on the same features, and measure them all.

    The usual protocol for frozen encoders (He et al., MoCo, CVPR 2020, Section 4.1, and its successors): softmax
    regression by SGD with momentum, no weight decay, no normalisation of the features, a cosine schedule from the
    rate to zero over all steps. Every rate sees the same batches, and the classifiers of all rates are one product.
    They begin at zero: the problem is convex, so nothing is gained by a random start.

    Args:
        train: features of the training images, an epoch at a time, such as `ShuffledFeatures`.
        queries: (Q, d) features to measure on; the classifiers have their dtype, float32 if that is half.
        query_labels: (Q,) int64, 0 to num_classes - 1.
        num_classes: number of classes K.
        rates: learning rates for a batch of 256; a rate is multiplied by batch_size / 256.
        epochs: passes over `train`.
        batch_size: rows of a full batch of `train`.
        momentum: of SGD.
        weight_decay: of SGD, on weights and biases.
        device: where to train.
        shared: queries are this process's part, of any size, none included, and `train` yields the same batches in all
            processes of the group, which all call this. Each trains a part of the rates, if there is one for it; each
            gets the result of all.
        progress: wraps the loop over the steps.

    Returns:
        Accuracies and classifiers. A classifier that is not finite any more gets nothing right.

    Raises:
        TypeError: features are not floating point or labels not int64.
        ValueError: shapes that do not fit, labels or settings out of range, features that are not finite.
        ElsewhereError: what another process has given cannot be used.
    """
    rank, world_size = world() if shared else (0, 1)
    with apart(shared):
        _check(queries, query_labels, num_classes, rates, epochs, batch_size, momentum, weight_decay, world_size > 1)
        if not len(train):
            raise ValueError("train must yield at least one batch, got none")
    sizes = exchange(len(queries)) if world_size > 1 else [len(queries)]
    if not any(sizes):
        raise ValueError("queries must have at least one row, got none")

    dtype = torch.promote_types(queries.dtype, torch.float32)
    own = rates[rank::world_size]
    with apart(shared):
        weight = torch.zeros(len(own), num_classes, queries.shape[1], dtype=dtype, device=device)
        bias = torch.zeros(len(own), num_classes, dtype=dtype, device=device)
        rate = torch.tensor(own, dtype=dtype, device=device) * (batch_size / 256)
        classifiers = _Classifiers(weight, bias, rate, momentum, weight_decay, steps=epochs * len(train))
    failure: Exception | None = None
    passes = progress(_Passes(train, epochs), "steps of the linear probe")
    for step, (epoch, features, labels) in enumerate(passes):
        if epoch == 0:  # a look at every value makes a GPU wait
            with alike() if world_size > 1 else nullcontext():
                check_features("features of train", features, "labels of train", labels, num_classes)
                if features.shape[1] != queries.shape[1]:
                    raise ValueError(
                        f"queries must have the {features.shape[1]} features of train, got {queries.shape[1]}"
                    )
        try:
            if own and failure is None:
                classifiers.step(features.to(weight), labels.to(device))
        except Exception as error:
            failure = error
        # A meeting at every step would take longer than the step.
        if world_size == 1 or step % _MEETING == 0:
            _meet(failure, shared)
    _meet(failure, shared)
    parts = [(queries, query_labels)] if world_size == 1 else _every_query(queries, query_labels, sizes, device)
    top1, top5 = _accuracies(weight, bias, parts, sum(sizes), shared)
    if world_size > 1:
        weight, bias, top1, top5 = _joined(weight, bias, top1, top5, len(rates), world_size)
    best = max(range(len(rates)), key=lambda index: (top1[index], -rates[index]))
    return ProbeResult(
        rates=tuple(rates),
        top1=top1,
        top5=top5 if num_classes >= TOP5_CLASSES else None,
        best=best,
        weight=weight.cpu(),
        bias=bias.cpu(),
    )


def _meet(failure: Exception | None, shared: bool) -> None:
    """Raise what has failed in this process, and if shared in another one."""
    with apart(shared):
        if failure is not None:
            raise failure


def check_settings(rates: Sequence[float], epochs: int, batch_size: int) -> None:
    """Raise ValueError if settings of `linear_probe` are out of range."""
    check_rates(rates)
    whole("epochs", epochs, 1)
    whole("batch_size", batch_size, 1)


def check_rates(rates: Sequence[float]) -> None:
    """Raise ValueError if there are no learning rates, or one is not above 0."""
    if not rates or not all(fits(rate, float) and 0 < rate <= sys.float_info.max for rate in rates):
        raise ValueError(f"rates must be one or more numbers above 0, got {written([*rates])}")


def _check(
    queries: Tensor,
    query_labels: Tensor,
    num_classes: int,
    rates: Sequence[float],
    epochs: int,
    batch_size: int,
    momentum: float,
    weight_decay: float,
    part: bool,
) -> None:
    whole("num_classes", num_classes, 2, WIDEST)
    check_features("queries", queries, "query_labels", query_labels, num_classes, part=part)
    check_settings(rates, epochs, batch_size)
    if real("momentum", momentum, 0) >= 1:
        raise ValueError(f"momentum must lie in [0, 1), got {written(momentum)}")
    real("weight_decay", weight_decay, 0)


class _Passes:
    """(epoch, features, labels) of every step of several epochs."""

    def __init__(self, train: Batches, epochs: int) -> None:
        self._train, self._epochs = train, epochs

    def __len__(self) -> int:
        return self._epochs * len(self._train)

    def __iter__(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        for epoch in range(self._epochs):
            for features, labels in self._train:
                yield epoch, features, labels


class _Classifiers:
    """SGD on R linear classifiers that differ in their learning rate.

    torch.optim.SGD has one rate for each parameter, and R parameters would be R products.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, rate: Tensor, momentum: float, weight_decay: float, steps: int
    ) -> None:
        self._parameters = (weight, bias)
        self._velocities = (torch.zeros_like(weight), torch.zeros_like(bias))
        self._rates = (rate.view(-1, 1, 1), rate.view(-1, 1))
        self._momentum, self._weight_decay = momentum, weight_decay
        self._done, self._steps = 0, steps

    @torch.no_grad()
    def step(self, features: Tensor, labels: Tensor) -> None:
        weight, bias = self._parameters
        # Of the mean cross-entropy in closed form: torch's of several classifiers is not deterministic on GPUs.
        of_logits = _logits(weight, bias, features).softmax(2)
        of_logits -= F.one_hot(labels, bias.shape[1])[:, None]
        of_logits /= len(labels)
        gradients = (of_logits.flatten(1).T @ features).view_as(weight), of_logits.sum(0)
        # CosineAnnealingLR, in closed form.
        decay = (1 + math.cos(math.pi * self._done / self._steps)) / 2
        self._done += 1
        for parameter, gradient, velocity, rate in zip(
            self._parameters, gradients, self._velocities, self._rates, strict=True
        ):
            velocity.mul_(self._momentum).add_(gradient).add_(parameter, alpha=self._weight_decay)
            parameter.sub_(decay * rate * velocity)


def _logits(weight: Tensor, bias: Tensor, features: Tensor) -> Tensor:
    """(n, R, K): the logits of all classifiers, as one product."""
    return torch.addmm(bias.flatten(), features, weight.flatten(0, 1).T).unflatten(1, bias.shape)


def _accuracies(
    weight: Tensor, bias: Tensor, queries: Iterable[tuple[Tensor, Tensor]], count: int, shared: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Top-1 and top-5 of every classifier, in percent, on so many queries, which come in parts."""
    right = torch.zeros(2, len(weight), dtype=torch.int64, device=weight.device)
    for part, labels in queries:
        with apart(shared):
            if len(weight):
                right += _hits(weight, bias, part, labels)
    top1, top5 = (100 * right.double() / count).tolist()
    return tuple(top1), tuple(top5)


def _hits(weight: Tensor, bias: Tensor, queries: Tensor, labels: Tensor) -> Tensor:
    """How many queries each classifier gets right, (2, R): by its best class, and by its five best."""
    size = max(1, _CHUNK_ELEMENTS // max(bias.numel(), 1))
    right = torch.zeros(2, len(weight), dtype=torch.int64, device=weight.device)
    for rows, truth in zip(queries.split(size), labels.split(size), strict=True):
        logits = _logits(weight, bias, rows.to(weight))
        hits = logits.topk(min(5, logits.shape[2]), dim=2).indices == truth.to(weight.device)[:, None, None]
        hits &= torch.isfinite(logits).all(2, keepdim=True)
        right += torch.stack([hits[:, :, 0].sum(0), hits.any(2).sum(0)])
    return right


def _every_query(
    queries: Tensor, labels: Tensor, sizes: Sequence[int], device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts of the queries of all processes, the same in each."""
    at_once = max(1, _GATHERED // max(queries.shape[1], 1))
    for rank, size in enumerate(sizes):
        for start in range(0, size, at_once):
            with together():
                if rank == world()[0]:
                    part, truth = (rows[start : start + at_once].to(device).contiguous() for rows in (queries, labels))
                else:
                    rows = min(at_once, size - start)
                    part = torch.empty(rows, queries.shape[1], dtype=queries.dtype, device=device)
                    truth = torch.empty(rows, dtype=torch.int64, device=device)
            dist.broadcast(part, rank)
            dist.broadcast(truth, rank)
            yield part, truth


def _joined(
    weight: Tensor, bias: Tensor, top1: tuple[float, ...], top5: tuple[float, ...], rates: int, world_size: int
) -> tuple[Tensor, Tensor, tuple[float, ...], tuple[float, ...]]:
    """Classifiers and accuracies of all rates, of which process p has trained every P-th from p on."""
    with together():
        every = [torch.empty(rates, *own.shape[1:], dtype=own.dtype, device=own.device) for own in (weight, bias)]
    for index in range(rates):
        for of_all, own in zip(every, (weight, bias), strict=True):
            if index % world_size == world()[0]:
                of_all[index] = own[index // world_size]
            dist.broadcast(of_all[index], index % world_size)
    found = exchange((top1, top5))
    first, second = (
        tuple(found[index % world_size][kind][index // world_size] for index in range(rates)) for kind in (0, 1)
    )
    return every[0], every[1], first, second

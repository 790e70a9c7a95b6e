"""Which settings of SimCLRLoss and MoCoLoss train from scratch, and which collapse: short runs over a grid.

    python -m benchmarks.collapse --data cifar10 --device cuda --jobs 12 --seconds 100

`--data` holds train/CLASS/* and test/CLASS/*. A run trains the project's ResNet-18 of width 16 (stem `small`) and a
head 512-512-128 on a fixed pool of augmented views, without warm-up or schedule, and looks at it on the way. Axes:
loss (`LOSSES`), head (`HEADS`: where it has BatchNorm), batch, optimiser (`OPTIMIZERS`). A seed's runs are ordered by
the number of axes on which they leave the middle of the grid (the first value of each axis; a minor loss counts as
one), up to `--deviations`; `--seconds` starts no run after that time, and the file has what there is.

The JSON holds "what", "machine", "environment" (as benchmarks.results has them), "command", "settings" and "runs". A
run: its place on the axes, `framework`, `kappa` and `negatives_per_anchor`, `knn_untrained`, `knn`, `loss_end` and
`gradient_norm_end` (before the clip; means of the last ten steps), `gradient_norm_median` of all steps, `seconds`,
`graph` (steps replayed as a CUDA graph), and `looks`, one for each of some steps: mean `cosine` of all pairs of
projections of a batch that never changes, mean squared distances `d_positive`, `d_selected` (to the κ hardest
negatives) and `d_negative` (to all), `d_shares` (to the hardest share of the negatives, for `SHARES`), and the
criterion's `last_stats`. A run that failed has `error` instead.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from amcl_fast import AdaptiveTemperature, MoCoLoss, SimCLRLoss
from amcl_fast.data import Augmentation
from amcl_fast.evaluate.knn import knn_accuracy
from amcl_fast.methods.pairs import normalised_rows
from amcl_fast.models import (
    BackboneConfig,
    KeyQueue,
    MomentumEncoder,
    MultiHeadProjector,
    ProjectorConfig,
    build_backbone,
)
from amcl_fast.models.modes import in_mode, untracked
from amcl_fast.runs.files import write_file

from ..measure.torchvision_views import view_steps
from ..results import environment, machine

_WHAT = (
    "Short trainings from scratch: mean cosine of all pairs of projections, mean squared distances of positives and "
    "negatives, and kNN (k = 200, weights exp(s/0.1)) of the encoder before and after"
)
SIZE, DIM, HIDDEN = 32, 128, 512
QUEUE, MOMENTUM = 4096, 0.99
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
SHARES = (0.01, 0.05, 0.1, 0.25, 0.5)
HEADS = ("plain", "hidden", "both")
"""BatchNorm in the head: none, after the hidden layer, after both layers."""
OPTIMIZERS = ("sgd-clip", "sgd", "adamw", "adamw-2e-3")
_WARM_UP = 3


@dataclass(frozen=True)
class Loss:
    """One setting of a loss.

    Attributes:
        framework: simclr or moco.
        heads: C.
        tau: a constant; (τ_min, τ_max) with the cosine score; None: the released temperature.
        negatives, positive: as the loss's `negatives` and `include_positive`.
        kappa: κ if an int, a share of the negatives if a float.
        minor: of less interest than the others.
        offset: where the cosine score's offset begins.
    """

    tau: float | tuple[float, float] | None
    negatives: str = "softmax"
    kappa: int | float | None = None
    positive: bool = False
    heads: int = 1
    framework: str = "simclr"
    minor: bool = False
    offset: float = 0.0

    def selected(self, batch: int) -> tuple[int, int]:
        """(κ, negatives of an anchor) with `batch` images."""
        available = QUEUE if self.framework == "moco" else 2 * batch - 2
        if self.kappa is None:
            return available, available
        wanted = self.kappa if isinstance(self.kappa, int) else max(1, round(self.kappa * available))
        return min(wanted, available), available

    def build(self, batch: int, backend: str) -> SimCLRLoss | MoCoLoss:
        """The criterion."""
        temperature: float | AdaptiveTemperature
        if isinstance(self.tau, tuple):
            low, high = self.tau
            temperature = AdaptiveTemperature(DIM, tau_min=low, tau_max=high, score="cosine", offset=self.offset)
        else:
            temperature = AdaptiveTemperature(DIM) if self.tau is None else self.tau
        cls = SimCLRLoss if self.framework == "simclr" else MoCoLoss
        return cls(
            temperature,
            negatives=self.negatives,
            top_k=self.selected(batch)[0],
            include_positive=self.positive,
            backend=backend,
        )


def _losses() -> dict[str, Loss]:
    adaptive = (0.1, 1.0)
    losses = {
        "ntxent-0.5": Loss(0.5, positive=True),
        "ntxent-0.1": Loss(0.1, positive=True),
        "ntxent-0.1-3heads": Loss(0.1, positive=True, heads=3),
        "dcl-0.1": Loss(0.1),
        "softmax-adaptive": Loss(adaptive, heads=3),
        "softmax-adaptive+": Loss(adaptive, positive=True, heads=3),
        "recommended": Loss(adaptive, positive=True, heads=3, offset=0.5),
        "softmax-adaptive-high+": Loss((0.2, 1.0), positive=True, heads=3),
        "topk-100-adaptive": Loss(adaptive, "topk_softmax", 100, heads=3),
        "topk-100-adaptive+": Loss(adaptive, "topk_softmax", 100, True, heads=3),
        "topk-100-0.1": Loss(0.1, "topk_softmax", 100, heads=3),
        "topk-100-0.1+": Loss(0.1, "topk_softmax", 100, True, heads=3),
        "topk-25%-adaptive+": Loss(adaptive, "topk_softmax", 0.25, True, heads=3),
        "topk-50%-adaptive+": Loss(adaptive, "topk_softmax", 0.5, True, heads=3),
        "topk-50%-adaptive": Loss(adaptive, "topk_softmax", 0.5, heads=3),
        "mean-100-released": Loss(None, "topk_mean", 100, heads=3),
        "moco-infonce-0.1": Loss(0.1, positive=True, framework="moco"),
        "moco-softmax-adaptive+": Loss(adaptive, positive=True, heads=3, framework="moco"),
        "moco-softmax-adaptive-high+": Loss((0.2, 1.0), positive=True, heads=3, framework="moco"),
        "moco-mean-100-released": Loss(None, "topk_mean", 100, heads=3, framework="moco"),
    }
    minor = {
        "ntxent-0.2": Loss(0.2, positive=True),
        "ntxent-0.2-3heads": Loss(0.2, positive=True, heads=3),
        "ntxent-0.5-3heads": Loss(0.5, positive=True, heads=3),
        "dcl-0.2": Loss(0.2),
        "softmax-adaptive-1head": Loss(adaptive),
        "softmax-adaptive+1head": Loss(adaptive, positive=True),
        "softmax-adaptive-low+": Loss((0.05, 0.5), positive=True, heads=3),
        "topk-100-0.2": Loss(0.2, "topk_softmax", 100, heads=3),
        "topk-100-adaptive-1head": Loss(adaptive, "topk_softmax", 100),
        "mean-100-adaptive": Loss(adaptive, "topk_mean", 100, heads=3),
        "mean-50%-0.1": Loss(0.1, "topk_mean", 0.5, heads=3),
        "moco-topk-100-adaptive": Loss(adaptive, "topk_softmax", 100, heads=3, framework="moco"),
        "moco-topk-100-adaptive+": Loss(adaptive, "topk_softmax", 100, True, heads=3, framework="moco"),
        "moco-softmax-adaptive": Loss(adaptive, heads=3, framework="moco"),
        "moco-infonce-0.2": Loss(0.2, positive=True, framework="moco"),
    }
    for share in (0.05, 0.1, 0.25):
        for sign, positive in (("", False), ("+", True)):
            name = f"topk-{share:.0%}-adaptive{sign}"
            if name not in losses:
                minor[name] = Loss(adaptive, "topk_softmax", share, positive, heads=3)
            minor[f"topk-{share:.0%}-0.1{sign}"] = Loss(0.1, "topk_softmax", share, positive, heads=3)
    minor["topk-50%-0.1"] = Loss(0.1, "topk_softmax", 0.5, heads=3)
    return losses | {name: replace(loss, minor=True) for name, loss in minor.items()}


LOSSES = _losses()
"""By name; + is the positive in the log-sum-exp, adaptive is τ with the cosine score from 0.1 to 1 (low: 0.05 to 0.5,
high: 0.2 to 1). `recommended` is `SimCLRLoss.recommended`, whose τ begin away from both ends of the range; MoCo's is
moco-softmax-adaptive+."""


@dataclass(frozen=True)
class Run:
    """A place in the grid."""

    loss: str
    head: str
    batch: int
    optimizer: str
    seed: int


@dataclass(frozen=True)
class Study:
    """What is the same for all runs; `pool` is the file of `make_pool`."""

    pool: str
    device: str
    backend: str
    steps: int
    graph: bool


def grid(
    losses: Sequence[str],
    heads: Sequence[str],
    batches: Sequence[int],
    optimizers: Sequence[str],
    seeds: Sequence[int],
    deviations: int,
) -> list[Run]:
    """The runs in their order: by seed, then by how many axes are not at their first value."""

    def distance(run: Run) -> int:
        places = ((run.head, heads), (run.batch, batches), (run.optimizer, optimizers))
        return sum(value != values[0] for value, values in places) + LOSSES[run.loss].minor  # type: ignore[index]

    runs = [Run(*axes) for axes in itertools.product(losses, heads, batches, optimizers, seeds)]
    near = (run for run in runs if distance(run) <= deviations)
    return sorted(near, key=lambda run: (seeds.index(run.seed), distance(run), not LOSSES[run.loss].minor))


def image_files(folder: Path, limit: int) -> tuple[list[str], list[int]]:
    """At most `limit` files of a folder of class folders, as many of each class as there are, and their classes."""
    classes = [sorted(child.iterdir()) for child in sorted(folder.iterdir()) if child.is_dir()]
    if not classes:
        raise ValueError(f"{folder} must hold a folder for each class, got none")
    each = -(-limit // len(classes))
    chosen = [(str(path), label) for label, paths in enumerate(classes) for path in paths[:each]]
    return [path for path, _ in chosen], [label for _, label in chosen]


def _decode(files: Sequence[str], views: int, augmentation: Augmentation, seed: int) -> np.ndarray:
    """uint8 (n, views, 3, SIZE, SIZE); with 0 views the whole images, (n, 1, 3, SIZE, SIZE)."""
    torch.manual_seed(seed)
    view = v2.Compose(view_steps(SIZE, augmentation if views else replace(augmentation, **_NOTHING)))
    result = np.empty((len(files), max(views, 1), 3, SIZE, SIZE), np.uint8)
    for number, file in enumerate(files):
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        for place in range(max(views, 1)):
            result[number, place] = np.asarray(view(image)).transpose(2, 0, 1)
    return result


_NOTHING: dict[str, Any] = {"crop_scale": None, "jitter": 0.0, "grey": 0.0, "blur": 0.0, "flip": 0.0}


def make_pool(
    executor: ProcessPoolExecutor,
    data: Path,
    file: Path,
    *,
    train: int,
    test: int,
    views: int,
    letters: str,
    chunks: int,
) -> None:
    """Write views of the training images, and all images as they are, with their classes."""
    augmentation = Augmentation.from_letters(letters)
    train_files, train_labels = image_files(data / "train", train)
    test_files, test_labels = image_files(data / "test", test)

    def parts(files: list[str], views: int) -> list[Any]:
        size = -(-len(files) // chunks)
        starts = range(0, len(files), size)
        return [executor.submit(_decode, files[i : i + size], views, augmentation, i) for i in starts]

    arrays = {"views": parts(train_files, views), "train": parts(train_files, 0), "test": parts(test_files, 0)}
    torch.save(
        {
            **{name: torch.from_numpy(np.concatenate([p.result() for p in made])) for name, made in arrays.items()},
            "train_labels": torch.tensor(train_labels),
            "test_labels": torch.tensor(test_labels),
        },
        file,
    )


@lru_cache(maxsize=1)
def _pool(file: str, device: str) -> dict[str, Tensor]:
    pool = {name: value.to(device) for name, value in torch.load(file, weights_only=True).items()}
    for name, values in (("mean", MEAN), ("std", STD)):
        pool[name] = torch.tensor(values, device=device).view(3, 1, 1)
    return pool


class _Encoder(nn.Module):
    """Backbone and projector, made from a seed; the backbone is the same for every head and loss."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        torch.manual_seed(run.seed)
        self.backbone = build_backbone(BackboneConfig("resnet18", "small", 16))
        config = ProjectorConfig(LOSSES[run.loss].heads, HIDDEN, DIM, batch_norm=run.head != "plain")
        self.projector = MultiHeadProjector(self.backbone.feature_dim, config)  # type: ignore[arg-type]
        if run.head == "hidden":
            self.projector.output_norm = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.projector(self.backbone(images))


def _normalised(images: Tensor, pool: dict[str, Tensor]) -> Tensor:
    scaled = (images.float() / 255 - pool["mean"]) / pool["std"]
    return scaled.contiguous(memory_format=torch.channels_last)


def _knn(backbone: nn.Module, pool: dict[str, Tensor]) -> float:
    def features(images: Tensor) -> Tensor:
        return torch.cat([backbone(_normalised(part[:, 0], pool)) for part in images.split(1000)])

    with torch.no_grad(), in_mode(backbone, training=False):
        return knn_accuracy(
            features(pool["train"]),
            pool["train_labels"],
            features(pool["test"]),
            pool["test_labels"],
            num_classes=int(pool["train_labels"].max()) + 1,
        )


@lru_cache(maxsize=8)
def _knn_untrained(seed: int, study: Study) -> float:
    encoder = _Encoder(Run(next(iter(LOSSES)), HEADS[0], 2, OPTIMIZERS[0], seed)).to(study.device)
    return _knn(encoder.backbone, _pool(study.pool, study.device))


class _Training:
    """A run under way: its models, and the step that trains them, which never waits for the device."""

    def __init__(self, run: Run, study: Study) -> None:
        self.loss = LOSSES[run.loss]
        self.pool = _pool(study.pool, study.device)
        self.encoder = _Encoder(run).to(study.device)
        self.criterion = self.loss.build(run.batch, study.backend).to(study.device)
        self.keys = MomentumEncoder(self.encoder, momentum=MOMENTUM).to(study.device)
        self.queue = KeyQueue(self.loss.heads, QUEUE, DIM).to(study.device)
        self.parameters = [*self.encoder.parameters(), *self.criterion.parameters()]
        self.clip = 1.0 if run.optimizer == "sgd-clip" else math.inf
        if run.optimizer.startswith("sgd"):
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
                self.parameters, 0.06, momentum=0.9, weight_decay=5e-4, foreach=True
            )
        else:
            lr = 2e-3 if run.optimizer == "adamw-2e-3" else 1e-3
            self.optimizer = torch.optim.AdamW(self.parameters, lr, foreach=True, capturable=study.device != "cpu")
        # Images and views of every step, drawn once: a run is the same on every device, up to rounding.
        generator = torch.Generator().manual_seed(run.seed)
        count, views = self.pool["views"].shape[:2]
        if run.batch > count:
            raise ValueError(f"batch must be at most the {count} training images, got {run.batch}")
        epochs = study.steps * run.batch // count + 2
        order = torch.cat([torch.randperm(count, generator=generator) for _ in range(epochs)])
        chosen = torch.rand(study.steps + 1, run.batch, views, generator=generator).argsort(-1)[..., :2]
        rows = order[: (study.steps + 1) * run.batch].view(study.steps + 1, run.batch, 1) * views + chosen
        self.rows = rows.mT.flatten(1).to(study.device)  # (steps + 1, 2N): first views, then second
        self.current = self.rows[0].clone()
        self.negatives = self.loss.selected(run.batch)

    def _batch(self, rows: Tensor) -> Tensor:
        return _normalised(self.pool["views"].flatten(0, 1)[rows], self.pool)

    def _evaluate(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, projections (2N, C, d), keys (C, 2N, d)."""
        projections = self.encoder(images)
        if self.loss.framework == "simclr":
            return self.criterion(*projections.chunk(2)), projections, normalised_rows(projections)
        with torch.no_grad():
            keys = normalised_rows(self.keys(images))
        k1, k2 = keys.transpose(0, 1).chunk(2)
        return self.criterion(projections, torch.cat([k2, k1]), self.queue.keys.mT), projections, keys

    def step(self) -> tuple[Tensor, Tensor, Tensor]:
        """One step on the rows in `current`; loss, gradient norm, keys."""
        loss, _, keys = self._evaluate(self._batch(self.current))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip, foreach=True)
        self.optimizer.step()
        if self.loss.framework == "moco":
            self.keys.update(self.encoder)
        return loss.detach(), norm, keys.detach()

    def look(self) -> dict[str, Any]:
        """Similarities of a batch that training has not seen yet, the last one, with that batch's statistics."""
        with torch.no_grad(), untracked(self.encoder), untracked(self.keys):
            loss, projections, keys = self._evaluate(self._batch(self.rows[-1]))
            x = normalised_rows(projections)
            count = x.shape[1]
            half = torch.arange(count, device=x.device)
            partner = (half + count // 2) % count
            gram = x @ x.mT
            cosine = (gram.sum((-2, -1)) - gram.diagonal(dim1=-2, dim2=-1).sum(-1)) / (count * (count - 1))
            positive = (x * keys[:, partner]).sum(-1)
            if self.loss.framework == "moco":
                negative = x @ self.queue.keys.mT
            else:
                own = torch.stack([half, partner], dim=1).expand(len(x), -1, -1)
                negative = gram.scatter(-1, own, -math.inf)
            kappa, available = self.negatives
            hardest = negative.sort(-1, descending=True).values[..., :available]

            def distance(share: int) -> float:
                return float(2 - 2 * hardest[..., :share].mean())

            return {
                "cosine": float(cosine.mean()),
                "d_positive": float(2 - 2 * positive.mean()),
                "d_selected": distance(kappa),
                "d_negative": distance(available),
                "d_shares": [distance(max(1, round(share * available))) for share in SHARES],
                "loss": float(loss),
                **{name: float(value) for name, value in self.criterion.last_stats.items()},
            }


def looks_at(steps: int) -> list[int]:
    """The steps before which a run is looked at."""
    return [step for step in (0, 5, 10, 20, 40, 80, 160, 320) if step < steps] + [steps]


def train(run: Run, study: Study) -> dict[str, Any]:
    """One run."""
    started = time.monotonic()
    training = _Training(run, study)
    watched = set(looks_at(study.steps))
    looks: list[dict[str, Any]] = []
    history: list[Tensor] = []
    graph = None
    result: tuple[Tensor, Tensor, Tensor] | None = None
    side = torch.cuda.Stream() if study.graph else None
    for step in range(study.steps):
        if step in watched:
            looks.append({"step": step, **training.look()})
        training.current.copy_(training.rows[step])
        if study.graph and step >= _WARM_UP:
            if graph is None:
                training.optimizer.zero_grad()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    result = training.step()
            graph.replay()
        else:
            training.optimizer.zero_grad()
            result = _on_stream(side, training.step)
        assert result is not None
        loss, norm, keys = result
        history.append(torch.stack([loss, norm]))
        if training.loss.framework == "moco":
            training.queue.enqueue(keys)
    looks.append({"step": study.steps, **training.look()})
    losses, norms = torch.stack(history).T.tolist()
    kappa, available = training.negatives
    return {
        **asdict(run),
        "framework": training.loss.framework,
        "kappa": kappa,
        "negatives_per_anchor": available,
        "steps": study.steps,
        "knn_untrained": _knn_untrained(run.seed, study),
        "knn": _knn(training.encoder.backbone, _pool(study.pool, study.device)),
        "loss_end": statistics.mean(losses[-10:]),
        "gradient_norm_end": statistics.mean(norms[-10:]),
        "gradient_norm_median": statistics.median(norms),
        "graph": study.graph,
        "seconds": round(time.monotonic() - started, 2),
        "looks": looks,
    }


def _on_stream(stream: Any, function: Callable[[], Any]) -> Any:
    """What a capture needs of the calls before it: that they ran on a stream of their own."""
    if stream is None:
        return function()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = function()
    torch.cuda.current_stream().wait_stream(stream)
    return result


def _work(run: Run, study: Study, deadline: float) -> dict[str, Any] | None:
    """One run of a worker process, None if it is too late; a run that fails says why."""
    if time.monotonic() > deadline:
        return None
    try:
        try:
            return train(run, study)
        except RuntimeError as error:
            if not study.graph:
                raise
            print(f"{run}: without a graph, because of {error}", file=sys.stderr)
            return train(run, replace(study, graph=False))
    except Exception as error:
        return {**asdict(run), "error": f"{type(error).__name__}: {error}"}


def table(runs: Iterable[dict[str, Any]]) -> str:
    """The runs as a table in Markdown, in the order of the grid's axes."""
    lines = [
        "| loss | head | batch | optimiser | seed | κ/negatives | D_p | D_T | cosine: start | end | τ of positives "
        "| kNN: untrained | end |",
        "|---" * 13 + "|",
    ]
    names = list(LOSSES)
    places = [*HEADS]
    for run in sorted(
        runs, key=lambda r: (places.index(r["head"]), r["batch"], r["optimizer"], names.index(r["loss"]), r["seed"])
    ):
        cells = [run["loss"], run["head"], str(run["batch"]), run["optimizer"], str(run["seed"])]
        if "error" in run:
            lines.append("| " + " | ".join([*cells, run["error"]]) + " |")
            continue
        first, last = run["looks"][0], run["looks"][-1]
        cells += [f"{run['kappa']}/{run['negatives_per_anchor']}"]
        cells += [f"{first[name]:.3g}" for name in ("d_positive", "d_selected", "cosine")]
        cells += [f"{last['cosine']:.3f}", f"{last['tau_positive_mean']:.2g}"]
        cells += [f"{run['knn_untrained']:.1f}", f"{run['knn']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _rounded(value: Any) -> Any:
    """Five digits are more than a run repeats; JSON has no NaN."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def _write(path: Path, document: dict[str, Any]) -> None:
    write_file(path, json.dumps(_rounded(document), ensure_ascii=False) + "\n")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Which settings of the contrast collapse.", allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/CLASS/* and test/CLASS/*")
    parser.add_argument("--train", type=int, default=10_000, help="training images")
    parser.add_argument("--test", type=int, default=2_000, help="test images")
    parser.add_argument("--views", type=int, default=6, help="views of each image in the pool")
    parser.add_argument("--augmentation", default="acde", metavar="LETTERS")
    parser.add_argument("--pool", type=Path, metavar="FILE", help="keep the views here; read them if it is there")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the device")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", default="", metavar="REGEX", help="losses whose name has a match")
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 64, 1024])
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--deviations", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no run after so many")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "results" / "collapse.json")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, write, print."""
    started = time.monotonic()
    arguments = _arguments(argv)
    losses = [name for name in LOSSES if re.search(arguments.only, name)]
    axes = (losses, arguments.heads, arguments.batches, arguments.optimizers, arguments.seeds)
    runs = grid(*axes, arguments.deviations)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
    context = multiprocessing.get_context("spawn")
    threads = int(os.environ.get("OMP_NUM_THREADS", max(1, (os.cpu_count() or 1) // arguments.jobs)))
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(
            arguments.jobs, mp_context=context, initializer=torch.set_num_threads, initargs=(threads,)
        ) as executor,
        environment() as about,
    ):
        document: dict[str, Any] = {
            "what": _WHAT,
            "machine": machine(torch.device(arguments.device).type),
            "environment": about,
            "command": "python -m benchmarks.collapse " + " ".join(sys.argv[1:]),
            "settings": settings,
            "runs": [],
        }
        pool = arguments.pool or Path(folder, "pool.pt")
        if not pool.is_file():
            make_pool(
                executor,
                arguments.data,
                pool,
                train=arguments.train,
                test=arguments.test,
                views=arguments.views,
                letters=arguments.augmentation,
                chunks=4 * arguments.jobs,
            )
        print(f"images after {time.monotonic() - started:.0f} s; {len(runs)} runs", flush=True)
        graph = arguments.device != "cpu" and not arguments.eager
        study = Study(str(pool), arguments.device, arguments.backend, arguments.steps, graph)
        futures = [executor.submit(_work, run, study, started + arguments.seconds) for run in runs]
        for future in as_completed(futures):
            if (row := future.result()) is not None:
                document["runs"].append(row)
                _write(arguments.output, document)
                seconds = time.monotonic() - started
                print(f"{seconds:.0f} s  {len(document['runs'])}", table([row]).splitlines()[2], flush=True)
    _write(arguments.output, document)
    print(table(document["runs"]))

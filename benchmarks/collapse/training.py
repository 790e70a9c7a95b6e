"""One run of the study: its models, its steps, and what they are looked at for."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from amcl_fast import SimCLRLoss
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
from amcl_fast.ops.backends import BackendName

from .grid import DIM, HEADS, LOSSES, OPTIMIZERS, QUEUE, Run
from .pool import normalised, read_pool

HIDDEN, MOMENTUM = 512, 0.99
SHARES = (0.01, 0.05, 0.1, 0.25, 0.5)
_WARM_UP = 3


@dataclass(frozen=True)
class Study:
    """What is the same for all runs; `pool` is the file of `make_pool`."""

    pool: str
    device: str
    backend: BackendName
    steps: int
    graph: bool


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


def _knn(backbone: nn.Module, pool: dict[str, Tensor]) -> float:
    def features(images: Tensor) -> Tensor:
        return torch.cat([backbone(normalised(part[:, 0], pool)) for part in images.split(1000)])

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
    return _knn(encoder.backbone, read_pool(study.pool, study.device))


class _Training:
    """A run under way: its models, and the step that trains them, which never waits for the device."""

    def __init__(self, run: Run, study: Study) -> None:
        self.loss = LOSSES[run.loss]
        self.pool = read_pool(study.pool, study.device)
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
        return normalised(self.pool["views"].flatten(0, 1)[rows], self.pool)

    def _evaluate(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, projections (2N, C, d), keys (C, 2N, d)."""
        projections = self.encoder(images)
        if isinstance(self.criterion, SimCLRLoss):
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
        "knn": _knn(training.encoder.backbone, read_pool(study.pool, study.device)),
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

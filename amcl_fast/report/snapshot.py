"""What the loss saw at one moment of training: similarities and temperatures of pairs, before and after."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..evaluate.mode import in_mode

_ANCHORS = 256
"""Anchors of a batch; more would only take memory."""

_KEPT = 4096
"""Negatives of each kind that are sampled from a batch; it has millions."""

_SHOWN = 10
"""Pairs of views that are kept as pictures."""


@dataclass(frozen=True)
class Snapshot:
    """Similarity and temperature of pairs, per head, as the loss forms them.

    Attributes:
        step: optimiser step at which it was taken.
        tau_min, tau_max: range of the temperature, equal if it is constant.
        top_k: hardest negatives that the loss selects per anchor and head, 0 if it takes all.
        positive_similarity, positive_tau: (C, N) of the two views of an image.
        hardest_similarity, hardest_tau: (C, M) of a sample of the selected negatives.
        random_similarity, random_tau: (C, M) of a sample of all negatives.
        views: (2, P, H, W, 3) uint8, the first pairs of views as pictures.
    """

    step: int
    tau_min: float
    tau_max: float
    top_k: int
    positive_similarity: NDArray[np.float32]
    positive_tau: NDArray[np.float32]
    hardest_similarity: NDArray[np.float32]
    hardest_tau: NDArray[np.float32]
    random_similarity: NDArray[np.float32]
    random_tau: NDArray[np.float32]
    views: NDArray[np.uint8]

    @property
    def constant_tau(self) -> bool:
        """Whether the temperature is a constant."""
        return self.tau_min == self.tau_max

    def save(self, path: Path) -> None:
        """Write it as .npz; the file appears when it is whole.

        Raises:
            OSError: it cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez_compressed(file, **{field.name: getattr(self, field.name) for field in fields(self)})
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> "Snapshot":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is no snapshot.
        """
        with np.load(path, allow_pickle=False) as file:
            missing = {field.name for field in fields(cls)} - set(file.files)
            if missing:
                raise ValueError(f"{path} is no snapshot: it lacks {', '.join(sorted(missing))}")
            arrays: dict[str, Any] = {field.name: file[field.name] for field in fields(cls)}
        scalars = {"step": int, "tau_min": float, "tau_max": float, "top_k": int}
        return cls(**(arrays | {name: kind(arrays[name]) for name, kind in scalars.items()}))


@torch.no_grad()
def capture(method: Any, datamodule: Any, *, pairs: int = 512, step: int = 0) -> Snapshot:
    """Similarities and temperatures of the first pairs of views that the data module gives.

    The views come from a loader of their own, so the same pairs come every time and training's place in the
    data stays as it is; weights, running statistics and random generators stay too. Batch normalisation works
    with the statistics of the batch, negatives are those of the batch: as the loss sees them.

    Args:
        method: a `SimCLR`: backbone, projector and criterion.
        datamodule: a `ContrastiveDataModule` that is set up.
        pairs: number of pairs, rounded up to whole batches; all if there are fewer.
        step: optimiser step to write down.

    Raises:
        ValueError: `pairs` below 1.
    """
    if pairs < 1:
        raise ValueError(f"pairs must be at least 1, got {pairs}")
    criterion = method.criterion
    sampler = torch.Generator().manual_seed(0)
    pictures = np.empty((2, 0, 1, 1, 3), np.uint8)
    parts: list[dict[str, Tensor]] = []
    gpus = [method.device] if method.device.type == "cuda" else []
    with in_mode(method, training=True), torch.random.fork_rng(devices=gpus):
        for first, second in _take(datamodule.train_dataloader(), pairs):
            if not parts:
                pictures = np.stack([_pictures(view, datamodule) for view in (first, second)])
            z = _embed(method, torch.cat([first, second]).to(method.device))
            parts.append(_of_batch(z, criterion, sampler))
    tau_min, tau_max = (
        (float(criterion.temperature),) * 2
        if criterion.adaptive is None
        else (criterion.adaptive.tau_min, criterion.adaptive.tau_max)
    )
    return Snapshot(
        step=step,
        tau_min=tau_min,
        tau_max=tau_max,
        top_k=criterion.top_k or 0,
        views=pictures,
        **{kind: torch.cat([part[kind] for part in parts], dim=1).numpy() for kind in parts[0]},
    )


def _take(loader: Any, pairs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The first two views of batch after batch, until there are `pairs` of them."""
    taken = 0
    for views, _ in loader:
        yield views[0], views[1]
        taken += len(views[0])
        if taken >= pairs:
            return


def _embed(method: Any, images: Tensor) -> Tensor:
    """`method.embed`, L2-normalised and heads first, (C, 2n, d); running statistics stay as they are."""

    def apply(module: nn.Module, x: Tensor) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        return torch.func.functional_call(module, buffers, (x,))

    z = apply(method.projector, apply(method.backbone, images))
    return F.normalize(z.float().transpose(0, 1), dim=-1)


def _of_batch(z: Tensor, criterion: Any, sampler: torch.Generator) -> dict[str, Tensor]:
    """Similarity and temperature of positives and negatives of one batch z (C, 2n, d), the views one after the
    other.

    Anchors are of the first view, at most `_ANCHORS`; all 2n rows are candidates.
    """
    n = z.shape[1] // 2
    rows = torch.arange(min(n, _ANCHORS), device=z.device)
    anchors = z[:, rows]
    with torch.autocast(z.device.type, enabled=False):
        s = anchors @ z.mT
        tau = (
            torch.full_like(s, float(criterion.temperature))
            if criterion.adaptive is None
            else criterion.adaptive(anchors, z)
        )
    negatives = s.clone()
    negatives[:, rows, rows] = negatives[:, rows, rows + n] = -torch.inf
    hardest = negatives.topk(min(criterion.top_k or 2 * n, 2 * n - 2), dim=-1).indices
    anchor = torch.randint(len(rows), (_KEPT,), generator=sampler)
    column = torch.randint(2 * n, (_KEPT,), generator=sampler)
    others = (column != anchor) & (column != anchor + n)
    anchor, column = anchor[others].to(z.device), column[others].to(z.device)
    chosen = torch.randint(hardest[0].numel(), (_KEPT,), generator=sampler).to(z.device)
    found = {}
    for name, values in (("similarity", s), ("tau", tau)):
        found[f"positive_{name}"] = values[:, rows, rows + n]
        found[f"hardest_{name}"] = values.gather(-1, hardest).flatten(1)[:, chosen]
        found[f"random_{name}"] = values[:, anchor, column]
    return {name: values.cpu() for name, values in found.items()}


def _pictures(view: Tensor, datamodule: Any) -> NDArray[np.uint8]:
    """The first images of a view (n, 3, H, W), normalised, as (P, H, W, 3) uint8."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (datamodule.mean, datamodule.std))
    pixels = view[:_SHOWN].float().cpu() * std + mean
    return (pixels.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()

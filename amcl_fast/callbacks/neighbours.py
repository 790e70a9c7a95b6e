"""Which training images are the nearest of some held-out ones: found among all features, shown as pictures."""

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..data.scan.headers import NoImageLeftError
from ..distributed import apart, exchange, world
from ..evaluate.knn import unit
from ..runs.neighbours import Neighbours

_QUERIES, _NEAREST = 8, 5
"""Held-out images that are shown, each of another class where there are as many, and neighbours of each."""

_SIDE = 96
"""Pixels of a picture's side at the most: 48 of them take 1.3 MB."""

_ROWS = 1 << 12
"""Rows of a bank that are compared at a time."""

Place = tuple[int, int]
"""An image: the process that has it, and its row there."""


@dataclass(frozen=True)
class Nearest:
    """Held-out images and their nearest training images, the same in all processes.

    Attributes:
        loaders: of this process, training images and held-out ones, whose rows places name.
        queries: (Q,) places of held-out images.
        found: (Q, K) places of training images.
        labels: (Q, 1 + K) classes of both.
        similarity: (Q, K).
    """

    loaders: tuple[Any, Any]
    queries: list[Place]
    found: list[list[Place]]
    labels: list[list[int]]
    similarity: list[list[float]]


def nearest_images(
    loaders: tuple[Any, Any], bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor
) -> Nearest:
    """Find the nearest training images, by the cosine of features, of one held-out image of some classes.

    All processes call it, each with its part, which may be none.

    Args:
        loaders: of training and held-out images, which have given the features.
        bank: (B, d) features of training images.
        bank_labels: (B,) int64.
        queries: (N, d) features of held-out images.
        query_labels: (N,) int64.
    """
    rank = world()[0]
    present = sorted({label for labels in exchange(query_labels.unique().tolist()) for label in labels})
    chosen = [present[place] for place in np.linspace(0, len(present) - 1, min(_QUERIES, len(present))).astype(int)]
    own = {}
    with apart():
        labels = query_labels.cpu()
        for label in chosen:
            if len(rows := (labels == label).nonzero()):
                own[label] = int(rows[0]), queries[int(rows[0])].float().cpu()
    asked: list[tuple[Place, int, Tensor]] = []
    every = exchange(own)
    for label in chosen:
        process = next(process for process, theirs in enumerate(every) if label in theirs)
        row, features = every[process][label]
        asked.append(((process, row), label, features))
    with apart():
        found = _nearest(bank, bank_labels, torch.stack([features for *_, features in asked]).to(bank.device), rank)
    merged = [
        sorted((one for of_process in of_query for one in of_process), key=lambda one: (-one[0], one[1]))[:_NEAREST]
        for of_query in zip(*exchange(found), strict=True)
    ]
    fewest = min(map(len, merged))
    return Nearest(
        loaders,
        [place for place, *_ in asked],
        [[place for _, place, _ in of_query[:fewest]] for of_query in merged],
        [[label, *(other for *_, other in of)] for (_, label, _), of in zip(asked, merged, strict=True)],
        [[similarity for similarity, *_ in of_query] for of_query in merged],
    )


def _nearest(bank: Tensor, labels: Tensor, queries: Tensor, rank: int) -> list[list[tuple[float, Place, int]]]:
    """For each query the nearest rows of this process: similarity, place, class."""
    best: list[list[tuple[float, Place, int]]] = [[] for _ in queries]
    for start in range(0, len(bank), _ROWS):
        rows = unit(bank[start : start + _ROWS].float())
        similarity, places = (unit(queries) @ rows.T).topk(min(_NEAREST, len(rows)))
        for of_query, values, of_rows in zip(best, similarity.tolist(), (places + start).tolist(), strict=True):
            of_query += [(value, (rank, row), int(labels[row])) for value, row in zip(values, of_rows, strict=True)]
    return best


def pictured(nearest: Nearest | None, by_class: Tensor, datamodule: Any, step: int) -> Neighbours | None:
    """What is kept of it, with pictures; all processes call it, the first gets the result.

    Args:
        nearest: as `nearest_images` found them; None: no pictures.
        by_class: (n, 2) int64, held-out images of each class that kNN takes for it, and all of them.
        datamodule: has `mean` and `std`, where its loaders can be asked for single images; `classes`, if it has any.
        step: optimiser step to write down.
    """
    rows: list[list[Place]] = []
    of_both: list[dict[Place, NDArray[np.uint8]]] = [{}, {}]
    shown = nearest is not None and all(hasattr(loader, "only") for loader in nearest.loaders)
    if nearest is not None and shown:
        rows = nearest.found
        wanted = [[place for of_query in nearest.found for place in of_query], nearest.queries]
        for held_out, (loader, places) in enumerate(zip(nearest.loaders, wanted, strict=True)):
            with apart():
                own = _pictures(loader, places, datamodule)
            of_both[held_out] = {place: image for part in exchange(own) for place, image in part.items()}
    if world()[0]:
        return None
    side = max((image.shape[0] for images in of_both for image in images.values()), default=1)
    black = np.zeros((side, side, 3), np.uint8)
    images = [
        [of_both[1].get(query, black), *(of_both[0].get(place, black) for place in found)]
        for query, found in zip(nearest.queries if nearest else [], rows, strict=False)
    ]
    count = len(rows[0]) if rows else 0
    return Neighbours(
        step=step,
        classes=np.array(getattr(datamodule, "classes", None) or range(len(by_class)), np.str_),
        right=by_class[:, 0].cpu().numpy(),
        asked=by_class[:, 1].cpu().numpy(),
        images=np.array(images, np.uint8).reshape(len(images), 1 + count, side, side, 3),
        labels=np.array([labels[: 1 + count] for labels in nearest.labels] if nearest and shown else [], np.int64),
        similarity=np.array([of[:count] for of in nearest.similarity] if nearest and shown else [], np.float32),
    )


def _pictures(loader: Any, places: Sequence[Place], datamodule: Any) -> dict[Place, NDArray[np.uint8]]:
    """Pictures (H, W, 3) of this process's images among those at the places; without those that cannot be read."""
    rank = world()[0]
    rows = sorted({row for process, row in places if process == rank})
    if not rows:
        return {}
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (datamodule.mean, datamodule.std))
    asked: Sized = loader.only(rows)
    try:
        images = [image.float().cpu() * std + mean for batch, _ in asked for image in batch]  # type: ignore[attr-defined]
    except NoImageLeftError:
        return {}
    if len(images) < len(rows):  # which of them has gone nobody tells
        return {}
    side = min(_SIDE, images[0].shape[1])
    small = F.interpolate(torch.stack(images), (side, side), mode="bilinear", antialias=True, align_corners=False)
    pixels = (small.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return {(rank, row): picture for row, picture in zip(rows, pixels, strict=True)}

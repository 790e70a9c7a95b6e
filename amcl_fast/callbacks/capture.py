"""A look at the pairs of a model as its loss forms them: similarities and temperatures, before and after training."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..data.scan.headers import NoImageLeftError
from ..distributed import world
from ..evaluate import encode
from ..methods import Method
from ..methods.pairs import Pairs, perplexities
from ..models.modes import in_mode
from ..progress import Progress
from ..runs.snapshot import Snapshot
from ..setting_types import whole
from ..temperature import PerplexityTemperature
from .neighbourhoods import NO_MAP, neighbourhoods

_SAMPLED = 4096
"""Negatives of each kind that are sampled from a batch; it has millions."""

_SHOWN = 10
"""Pairs of views that are kept as pictures."""

_CLASSES, _IMAGES = 10, 100
"""Classes of the embedding and images of each: more colours cannot be told apart, more dots hide one another."""


@torch.no_grad()
def capture(method: Any, datamodule: Any, *, pairs: int = 512, step: int = 0, mapped: bool = False) -> Snapshot:
    """Similarities and temperatures of the first pairs of views that the data module gives, and an embedding.

    Of more than two views they are of two of the largest size, or of the largest and another (`Method.two_of`). The
    views come from a loader of their own, and what the method draws from a seed of its own, so the same pairs come
    every time and training's place in the data stays as it is; weights, running statistics and random generators stay
    too. Batch normalisation works with the statistics of the batch, negatives are those that the framework has: as the
    loss sees them.

    Args:
        method: a `Method`.
        datamodule: a `ContrastiveDataModule` that is set up.
        pairs: number of pairs, rounded up to whole batches; all if there are fewer.
        step: optimiser step to write down.
        mapped: place the embedding's images by UMAP or t-SNE as well, if one of them is installed; it takes seconds.

    Raises:
        ValueError: `pairs` below 1.
    """
    whole("pairs", pairs, 1)
    criterion = method.criterion
    top_k = getattr(criterion, "top_k", None) or 0
    sampler = torch.Generator().manual_seed(0)
    pictures, made = np.empty((2, 0, 1, 1, 3), np.uint8), {}
    parts: list[dict[str, Tensor]] = []
    gpus = [method.device] if method.device.type == "cuda" else []
    with (
        Progress("looking at pairs", pairs, shown=not world()[0], lines=False) as looks,
        in_mode(method, training=True),
        torch.random.fork_rng(devices=gpus),
    ):
        torch.default_generator.manual_seed(0)
        if gpus:  # torch.manual_seed would seed those that are not forked too
            with torch.cuda.device(method.device):
                torch.cuda.manual_seed(0)
        loader = getattr(datamodule, "sample_loader", datamodule.train_dataloader)()
        for views in _take(loader, pairs, method.two_of):
            looks.add(len(views[0]))
            on_device = [view.to(method.device) for view in views]
            found = _sample(method.pairs_of_views(on_device), top_k, sampler)
            if not parts:
                pictures = _pictures(views, datamodule)
                made = _named(method.pictures_of_views([view[:_SHOWN] for view in on_device]), datamodule)
            parts.append(found)
    # Methods of others need not have a criterion with a temperature.
    tau: Any = getattr(criterion, "temperature", parts[0]["positive_tau"].mean())
    tau_min, tau_max = (tau.tau_min, tau.tau_max) if hasattr(tau, "tau_min") else (float(tau), float(tau))
    pinned = isinstance(tau, PerplexityTemperature)
    held_out = datamodule.held_out_sample(_CLASSES, _IMAGES)
    embedding, shares, labels = torch.zeros(0, 2), torch.zeros(2), torch.zeros(0, dtype=torch.int64)
    places, name = NO_MAP
    if held_out is not None:
        with suppress(NoImageLeftError):
            features, labels = encode(method.backbone, held_out, method.device)
            embedding, shares = principal_components(features)
            places, name = neighbourhoods(features) if mapped else NO_MAP
    shown = labels.unique()
    sampled: dict[str, Any] = {kind: torch.cat([part[kind] for part in parts], dim=1).numpy() for kind in parts[0]}
    return Snapshot(
        framework=type(method).__name__,
        step=step,
        tau_min=tau_min,
        tau_max=tau_max,
        top_k=top_k,
        views=pictures,
        **made,
        embedding=embedding.numpy(),
        embedding_variance=shares.numpy(),
        labels=torch.searchsorted(shown, labels).numpy(),
        classes=np.array([datamodule.classes[label] for label in shown], np.str_),
        map=places,
        map_name=name,
        per_anchor=pinned or getattr(tau, "share", "pair") == "row",
        pinned=pinned,
        **sampled,
    )


def has_pairs(method: Any) -> bool:
    """Whether a method says which pairs it forms: a user's own need not."""
    return type(method).pairs is not Method.pairs


def hardest(pairs: Pairs, top_k: int) -> tuple[Tensor, Tensor]:
    """Similarity and τ (C, n, k) of the most similar negatives of every anchor and head, as many as the loss takes.

    `top_k`: how many where pairs do not say, 0 for all.
    """
    if pairs.taken_similarity is not None and pairs.taken_tau is not None:
        return pairs.taken_similarity, pairs.taken_tau
    similarity, tau = pairs.negative_similarity, pairs.negative_tau
    if not top_k:
        return similarity, tau
    similarity, index = similarity.topk(min(top_k, similarity.shape[-1]), dim=-1)
    return similarity, tau.gather(-1, index)


def principal_components(features: Tensor) -> tuple[Tensor, Tensor]:
    """L2-normalised features (n, d) on their first two principal axes, (n, 2), and the axes' shares of the variance."""
    unit = F.normalize(features.float(), dim=1)
    left, values, right = torch.linalg.svd(unit - unit.mean(0), full_matrices=False)
    # An axis has no sign of its own: that of its largest entry, so that a picture comes out the same again.
    signs = right.gather(1, right.abs().argmax(1, keepdim=True)).sign().T
    places, shares = left * values * signs, values**2 / (values**2).sum().clamp_min(1e-12)
    return F.pad(places, (0, 2))[:, :2], F.pad(shares, (0, 2))[:2]  # one image or one feature has no second axis


def _take(loader: Any, pairs: int, two_of: Callable[[Sequence[Tensor]], tuple[int, int]]) -> Iterator[list[Tensor]]:
    """The two views that a method looks at, of batch after batch, until there are `pairs` of them."""
    taken = 0
    for views, _ in loader:
        yield [views[place] for place in two_of(views)]
        taken += len(views[0])
        if taken >= pairs:
            return


def _sample(pairs: Pairs, top_k: int, sampler: torch.Generator) -> dict[str, Tensor]:
    """Positives, a sample of the selected and of all negatives, the same pairs in every head; perplexity of anchors."""
    taken = hardest(pairs, top_k)
    selected = [values.flatten(1) for values in taken]
    every = [values.flatten(1) for values in (pairs.negative_similarity, pairs.negative_tau)]
    drawn = [torch.randint(of[0].shape[1], (_SAMPLED,), generator=sampler).to(of[0].device) for of in (selected, every)]
    return {
        "positive_similarity": pairs.positive_similarity.cpu(),
        "positive_tau": pairs.positive_tau.cpu(),
        "hardest_similarity": selected[0][:, drawn[0]].cpu(),
        "hardest_tau": selected[1][:, drawn[0]].cpu(),
        "random_similarity": every[0][:, drawn[1]].cpu(),
        "random_tau": every[1][:, drawn[1]].cpu(),
        **({} if pairs.taken_tau is None else {"perplexity": perplexities(*taken).cpu()}),
    }


def _named(made: dict[str, Tensor], datamodule: Any) -> dict[str, Any]:
    """What a method makes of images, as a snapshot keeps it."""
    if not made:
        return {}
    pictures = _pictures(list(made.values()), datamodule)
    return {"pictures": pictures, "picture_names": np.array(list(made), np.str_)}


def _pictures(views: Sequence[Tensor], datamodule: Any) -> NDArray[np.uint8]:
    """The first images of V tensors (n, 3, H, W), normalised, as (V, P, H, W, 3) uint8, the smaller ones enlarged."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (datamodule.mean, datamodule.std))
    height, width = (max(view.shape[side] for view in views) for side in (2, 3))
    shown = []
    for view in views:
        pixels = view[:_SHOWN].float().cpu() * std + mean
        if pixels.shape[2:] != (height, width):
            pixels = F.interpolate(pixels, (height, width))  # the nearest pixel, so that each can be told
        shown.append((pixels.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy())
    return np.stack(shown)

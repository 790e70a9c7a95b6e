"""What a run makes of a dataset, a loader or a data module that it is given."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import lightning as L

from ..data.own.batches import batches_of, first_batch
from ..data.own.datasets import DatasetModule, view_sizes
from ..data.own.items import Items, class_name
from .given import Given

_OF_VIEWS = ("data.views", "data.augmentation")
_MEASURED = {
    *("data.mean", "data.std", "data.crop_pct", "data.num_threads", "data.prefetch", "data.device"),
    *("data.max_image_bytes", "data.max_image_pixels"),
}
"""Settings of the data that count where batches come from a loader: those of what is measured and drawn."""


def given_data(
    given: Given, arguments: dict[str, str], data: Any, evaluation: Any, augment: Any
) -> tuple[Given, dict[str, str]]:
    """What is given and set, with these.

    Args:
        given, arguments: without them.
        data: a dataset, a loader or a data module.
        evaluation, augment: as of `amcl_fast.pretrain`.

    Raises:
        ValueError: one of them is none of what it may be, or a setting has no meaning beside it.
    """
    for name in ("data.root", "data.held_out", "data.evaluation"):
        if name in arguments:
            raise ValueError(
                f"{name} must be left out where data is a {class_name(data)}, got {arguments[name]}; evaluation says "
                "what is measured on"
            )
    named = {**given.named, "data": class_name(data)}
    if evaluation is not None:
        parts = evaluation if isinstance(evaluation, tuple | list) else (evaluation,)
        named["evaluation"] = ", ".join(map(class_name, parts))
    if _is_dataset(data):
        functions = _functions(augment)
        if functions:
            named["augment"] = ", ".join(
                getattr(function, "__qualname__", class_name(function)) for function in functions
            )
        make, settings = _of_dataset(arguments, data, evaluation, functions)
    else:
        make, settings = _of_loader(arguments, data, evaluation, augment)
    return replace(given, data=make, named=named), {**arguments, **settings}


def _of_dataset(arguments: dict[str, str], data: Any, evaluation: Any, functions: Sequence[Any]) -> tuple[Any, Any]:
    if evaluation is not None and not _is_dataset(evaluation):
        raise ValueError(
            f"evaluation must be a dataset of held-out images where data is a dataset, got {class_name(evaluation)}"
        )
    items = Items(data)
    held_out = None if evaluation is None else Items(evaluation, "evaluation")
    if not functions:
        return partial(DatasetModule, items, held_out, ()), {}
    for name in _OF_VIEWS:
        if name in arguments:
            raise ValueError(f"{name} must be left out with augment, which makes the views, got {arguments[name]}")
    size = max(view_sizes(items, functions))
    if arguments.get("data.size", str(size)) != str(size):
        raise ValueError(
            f"data.size must be {size}, the side of augment's views, or unset, got {arguments['data.size']}"
        )
    return partial(DatasetModule, items, held_out, functions), {"data.size": str(size)}


def _of_loader(arguments: dict[str, str], data: Any, evaluation: Any, augment: Any) -> tuple[Any, Any]:
    if augment is not None:
        raise ValueError(
            f"augment must be left out where data gives batches, which are views already, got {class_name(augment)}"
        )
    if not isinstance(data, L.LightningDataModule) and not isinstance(data, Iterable):
        raise ValueError(
            f"data must be a path, settings, a dataset, a loader or a LightningDataModule, got {class_name(data)}"
        )
    bank = queries = None
    if evaluation is not None:
        pair = isinstance(evaluation, tuple | list) and len(evaluation) == 2 and all(map(_is_dataset, evaluation))
        if not pair:
            raise ValueError(
                "evaluation must be two datasets, (training images, held-out images), where data is a loader, got "
                f"{class_name(evaluation)}"
            )
        bank, queries = Items(evaluation[0], "bank"), Items(evaluation[1], "evaluation")
    make, of_batches = batches_of(data, first_batch(data), bank, queries)
    settings = {f"data.{name}": str(value) for name, value in of_batches.items()}
    for name, text in arguments.items():
        if name.startswith("data.") and name not in _MEASURED and settings.get(name) != text:
            what = f"is {settings[name]} in its batches" if name in settings else "is for images, not for batches"
            raise ValueError(f"{name} must be left out where data is a loader: it {what}, got {text}")
    return make, settings


def _functions(augment: Any) -> tuple[Any, ...]:
    functions = (augment, augment) if callable(augment) else () if augment is None else tuple(augment)
    if augment is not None and (len(functions) < 2 or not all(map(callable, functions))):
        raise ValueError(f"augment must be a function, or one for each of two views or more, got {augment!r}")
    return functions


def _is_dataset(data: Any) -> bool:
    """Whether it has images by place; a list of batches is a loader."""
    if isinstance(data, L.LightningDataModule) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        return False
    if not isinstance(data, tuple | list):
        return True
    first = data[0] if data else None
    return not (isinstance(first, tuple | list) and isinstance(first[0], tuple | list))

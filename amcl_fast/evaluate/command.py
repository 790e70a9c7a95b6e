"""`amcl-fast evaluate`: from a checkpoint and a folder to a table and a JSON file."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..data import ContrastiveDataModule
from ..data.headers import NoImageLeftError
from ..data.left_out import shorten, summarise
from ..encoder import SUFFIX, Encoder, find_weights, load_encoder
from ..files import check_output, write_file
from ..paths import absolute_data, find_data
from .evaluation import Evaluation, evaluate


def run(
    weights: Path,
    *,
    data: str | None,
    held_out: str | None,
    size: int | None,
    crop_pct: float | None,
    k: int,
    epochs: int,
    rates: Sequence[float],
    batch_size: int,
    augment: bool | None,
    output: Path | None,
) -> None:
    """Evaluate, print a table, write the JSON file.

    Args:
        weights: run directory, checkpoint or exported safetensors file.
        data: as data.root of `ContrastiveDataModule`; None: what the encoder was trained on.
        held_out: as data.held_out; None: as in training, if `data` is None, or a part of `data`.
        size: side of the images in pixels; None: as in training.
        crop_pct: share of the shorter side that is seen; None: as in training.
        k: neighbours of kNN.
        epochs, rates, batch_size: of the linear probe.
        augment: random crop and flip for the linear probe, anew every epoch; None: on a GPU only, since the encoder
            runs once an epoch for it.
        output: the JSON file; None: `evaluation-DATA.json` in the run directory, or beside the weights.

    Raises:
        ValueError: the weights or the data cannot be used, nothing can be measured on the data, or a setting is out of
            range.
        OSError: something cannot be read or written.
        ImportError: a package is missing.
    """
    if output is not None:
        check_output(output)
    encoder = load_encoder(weights)
    if held_out is not None:
        held_out = absolute_data(held_out)
    if data is not None:
        data = absolute_data(data)
    elif encoder.data is not None:
        run_dir = _run_dir(find_weights(weights))
        data = find_data(encoder.data, run_dir)
        if held_out is None and encoder.held_out:
            held_out = find_data(encoder.held_out, run_dir)
    else:
        raise ValueError(f"{weights} does not say what it was trained on: give --data")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    datamodule = ContrastiveDataModule(
        root=data,
        held_out=held_out,
        size=size or encoder.size,
        batch_size=batch_size,
        mean=encoder.mean,  # type: ignore[arg-type]
        std=encoder.std,  # type: ignore[arg-type]
        crop_pct=encoder.crop_pct if crop_pct is None else crop_pct,
        num_threads=len(os.sched_getaffinity(0)),
        device="gpu" if device.type == "cuda" else "cpu",
    )
    datamodule.prepare_data()
    datamodule.setup()
    if datamodule.unmeasurable:
        raise ValueError(f"kNN and linear probe cannot be measured on {data}: {datamodule.unmeasurable}")
    print(_heading(encoder, find_weights(weights), data, datamodule), flush=True)
    bank, queries = datamodule.features_loaders()
    on_crops = device.type == "cuda" if augment is None else augment
    try:
        found = evaluate(
            encoder.backbone,
            bank,
            queries,
            num_classes=datamodule.num_classes,
            augmented=datamodule.linear_probe_loader() if on_crops else None,
            k=k,
            rates=rates,
            epochs=epochs,
            batch_size=batch_size,
            device=device,
            progress=_bar,
        )
    except NoImageLeftError as error:
        raise ValueError(f"kNN and linear probe cannot be measured on {data}: {error}") from error
    print(_table(found))
    path = output or _beside(weights, data)
    content = {
        "weights": str(weights),
        "encoder": encoder.metadata,
        "data": data,
        "held_out": held_out,
        "size": datamodule.size,
        "crop_pct": datamodule.crop_pct,
        "classes": datamodule.num_classes,
        **found.as_dict(),
        "skipped_files": [list(entry) for entry in shorten(datamodule.skipped)],
    }
    write_file(path, json.dumps(content, indent=2) + "\n")
    print(f"written to  {path}")


def _bar(loop: Iterable[Any], title: str) -> Iterable[Any]:
    return tqdm(loop, desc=title, leave=False, disable=None)  # None: only on a terminal


def _heading(encoder: Encoder, file: Path, data: str, datamodule: ContrastiveDataModule) -> str:
    history = "".join(f", {encoder.origin[unit]} {unit}" for unit in ("epochs", "steps") if unit in encoder.origin)
    left_out = f"\n            {summarise(datamodule.skipped)}" if datamodule.skipped else ""
    seen = f" of {datamodule.size / datamodule.crop_pct:.0f}" if datamodule.crop_pct < 1 else ""
    return (
        f"encoder     {file} ({encoder.config.name}{history})\n"
        f"data        {data}: {datamodule.num_classes} classes, {datamodule.size} px{seen}{left_out}"
    )


def _table(found: Evaluation) -> str:
    probe = found.linear
    seen = "random crop and flip every epoch" if found.augmented else "features computed once, without augmentation"
    lines = [
        f"images      {found.training_images:,} to learn from, {found.queries:,} held out; {found.features} features",
        f"kNN         {found.knn:.2f} %  (k = {found.k}, temperature {found.temperature:g})",
        f"linear      {probe.top1[probe.best]:.2f} %  ({found.epochs} epochs, batch {found.batch_size}, {seen})",
        "  rate      top-1" + ("     top-5" if probe.top5 else ""),
    ]
    for index, (rate, top1) in enumerate(zip(probe.rates, probe.top1, strict=True)):
        top5 = f"  {probe.top5[index]:6.2f} %" if probe.top5 else ""
        lines.append(f"  {rate:<8g}{top1:6.2f} %{top5}{'  <- best' if index == probe.best else ''}")
    lines.append("The best rate is chosen on the held-out images themselves, as is the custom.")
    return "\n".join(lines)


def _beside(weights: Path, data: str) -> Path:
    """Where the result goes: into the run directory if there is one."""
    name = f"evaluation-{Path(data).resolve().name}.json"
    if weights.is_dir():
        return weights / name
    if weights.suffix == SUFFIX:
        return weights.with_name(f"{weights.stem}-{name}")
    run_dir = _run_dir(weights)
    return (run_dir if (run_dir / "config.yaml").is_file() else weights.parent) / name


def _run_dir(checkpoint: Path) -> Path:
    return checkpoint.resolve().parent.parent

"""`amcl-fast evaluate`: from a checkpoint and a folder to a table and a JSON file, frozen or fine-tuned."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..data import ContrastiveDataModule
from ..data.equality import UnequalImagesError
from ..data.scan.headers import NONE_MEASURED, NoImageLeftError
from ..distributed import alike, exchange, together, world
from ..encoder import SUFFIX, Encoder, find_weights, load_encoder
from ..export import as_safetensors
from ..fellows import launched, once_a_machine, patient
from ..launch import threads
from ..left_out import shorten, summarise
from ..paths import absolute_data, find_data
from ..progress import Loop
from ..runs.directory import RunDirectory
from ..runs.files import check_output, write_file
from ..setting_types import whole
from .evaluation import Evaluation, evaluate
from .features import NothingToEvaluateError
from .fine_tuning import fine_tune, usual
from .linear import check_settings


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
    half: bool,
    output: Path | None,
    trust: bool = False,
    limits: Sequence[int | None] = (None, None),
) -> None:
    """Evaluate, print a table, write the JSON file; by all processes of torchrun or srun, of which the first does that.

    Args:
        weights: run directory, checkpoint or exported safetensors file.
        data: as data.root of `ContrastiveDataModule`; None: what the encoder was measured or trained on.
        held_out: as data.held_out; None: as in training, if `data` is None, or a part of `data`.
        size: side of the images in pixels; None: as in training.
        crop_pct: share of the shorter side that is seen; None: as in training.
        k: neighbours of kNN.
        epochs, rates, batch_size: of the linear probe.
        augment: random crop and flip for the linear probe, anew every epoch; None: on a GPU only, since the encoder
            runs once an epoch for it.
        half, trust: keep features in float16; see `load_encoder`.
        output: the JSON file; None: `evaluation-DATA.json` in the run directory, or beside the weights.
        limits: data.max_image_bytes and data.max_image_pixels; None: as in training.

    Raises:
        ValueError: the weights or the data cannot be used, nothing can be measured on the data, or a setting is out of
            range.
        OSError: something cannot be read or written.
        ImportError: a package is missing.
        ElsewhereError: another process raises one of these.
    """
    with launched() as device:
        rank, world_size = world()
        with together():
            whole("k", k, 1)
            check_settings(rates, epochs, batch_size)
            if output is not None and not rank:
                check_output(output)
            encoder = load_encoder(weights, trust=trust)
            datamodule = _data_module(
                weights, encoder, data, held_out, size, crop_pct, batch_size, device, limits=limits
            )
            data = datamodule.root
            output = _place(output, weights, data)
        _find_images(datamodule, data)
        on_crops = device.type == "cuda" if augment is None else augment
        with together():
            bank, queries = datamodule.features_loaders(shard=rank, num_shards=world_size)
            augmented = datamodule.linear_probe_loader(rank, world_size) if on_crops else None
        if not rank:
            print(_heading(encoder, find_weights(weights), data, datamodule), flush=True)
        with _images_left(data):
            found = evaluate(
                encoder.backbone,
                bank,
                queries,
                num_classes=datamodule.num_classes,
                augmented=augmented,
                k=k,
                rates=rates,
                epochs=epochs,
                batch_size=batch_size,
                device=device,
                dtype=torch.float16 if half else torch.float32,
                shared=True,
                progress=lambda loop, what: Loop(loop, what, shown=not rank),
            )
        skipped = _skipped(datamodule)
        if rank:
            return
        print(_table(found, half))
        content = {
            "weights": str(weights),
            "encoder": encoder.metadata,
            **_told_of(datamodule),
            "features_kept_in": "float16" if half else "float32",
            "processes": world_size,
            **found.as_dict(),
            "skipped_files": skipped,
        }
        _write(output, content)


def run_fine_tuning(
    weights: Path,
    *,
    data: str | None,
    held_out: str | None,
    size: int | None,
    crop_pct: float | None,
    label_fraction: float,
    batch_size: int,
    settings: Mapping[str, Any],
    output: Path | None,
    save_encoder: Path | None,
    trust: bool = False,
    limits: Sequence[int | None] = (None, None),
) -> None:
    """Fine-tune, print a table, write the JSON file and the best encoder; by all processes, as `run`.

    Args:
        weights, data, held_out, size, crop_pct, trust, limits: as for `run`.
        label_fraction: share of the labelled images that is trained on, always the same, of every class as many as
            nearly as possible.
        batch_size: images of a step, of all processes; all images where there are fewer.
        settings: of `FineTuning`; None stands for what `usual` says.
        output: the JSON file; None: `fine-tuning-DATA.json`, or `fine-tuning-DATA-FRACTION.json`, in the run directory,
            or beside the weights.
        save_encoder: safetensors file of the best encoder, as of `export`; None: none.

    Raises:
        ValueError, OSError, ImportError, ElsewhereError: as `run`.
    """
    with launched() as device:
        rank, world_size = world()
        with together():
            if not 0 < label_fraction <= 1:
                raise ValueError(f"label_fraction must be above 0 and at most 1, got {label_fraction}")
            if save_encoder is not None and save_encoder.suffix != SUFFIX:
                raise ValueError(f"save_encoder must end in {SUFFIX}, got {save_encoder}")
            for path in filter(None, () if rank else (output, save_encoder)):
                check_output(path)
            encoder = load_encoder(weights, trust=trust)
            chosen = usual(encoder.backbone, **settings)
            datamodule = _data_module(
                weights, encoder, data, held_out, size, crop_pct, batch_size, device, limits=limits, seed=chosen.seed
            )
            data = datamodule.root
            output = _place(output, weights, data, partial(RunDirectory.fine_tuning, fraction=label_fraction))
        _find_images(datamodule, data)
        with together():
            _, queries = datamodule.features_loaders(shard=rank, num_shards=world_size)
            train = datamodule.linear_probe_loader(rank, world_size, label_fraction)
        if not rank:
            print(_heading(encoder, find_weights(weights), data, datamodule), flush=True)
            share = f", {label_fraction:g} of the labels" if label_fraction < 1 else ""
            how = f"{chosen.optimizer}, {chosen.epochs} epochs, batch {train.batch_size * world_size}"
            print(f"images      {train.images:,} to learn from{share}; {how}", flush=True)

        def told(rate: float, top1: float) -> None:
            if not rank:
                print(f"  rate {rate:<8g}{top1:6.2f} %", flush=True)

        with _images_left(data):
            found = fine_tune(
                encoder.backbone,
                lambda: datamodule.linear_probe_loader(rank, world_size, label_fraction),
                queries,
                chosen,
                num_classes=datamodule.num_classes,
                batch_size=train.batch_size * world_size,
                device=device,
                shared=True,
                progress=lambda loop, what: Loop(loop, what, shown=not rank),
                told=told,
            )
        skipped = _skipped(datamodule)
        if rank:
            return
        result, rates = found.as_dict(), sorted(chosen.rates)
        print(f"fine-tuned  {result['top1']:.2f} %  at rate {result['rate']:g}, of {found.queries:,} held out")
        print("The best rate is chosen on the held-out images themselves, as is the custom.")
        if len(rates) > 1 and result["rate"] in (rates[0], rates[-1]):
            side = "lowest" if result["rate"] == rates[0] else "highest"
            print(f"It is the {side} of those tried: others, by --rates, may do better.")
        content = {
            "weights": str(weights),
            "encoder": encoder.metadata,
            **_told_of(datamodule),
            "label_fraction": label_fraction,
            "training_images": train.images,
            "queries": found.queries,
            "batch_size": train.batch_size * world_size,
            "processes": world_size,
            "fine_tuning": result,
            "skipped_files": skipped,
        }
        if save_encoder is not None:
            encoder.backbone.load_state_dict(found.encoder)
            origin = {**encoder.origin, "fine_tuned": f"{data}, rate {result['rate']:g}, {chosen.epochs} epochs"}
            write_file(save_encoder, as_safetensors(replace(encoder, origin=origin)))
            print(f"encoder     {save_encoder}")
        _write(output, content)


def _data_module(
    weights: Path,
    encoder: Encoder,
    data: str | None,
    held_out: str | None,
    size: int | None,
    crop_pct: float | None,
    batch_size: int,
    device: torch.device,
    seed: int = 0,
    limits: Sequence[int | None] = (None, None),
) -> ContrastiveDataModule:
    most_bytes, most_pixels = (b if a is None else a for a, b in zip(limits, encoder.limits, strict=True))
    data, held_out = _data(weights, encoder, data, held_out)
    return ContrastiveDataModule(
        root=data,
        held_out=held_out,
        size=encoder.size if size is None else size,
        batch_size=batch_size,
        mean=encoder.mean,  # type: ignore[arg-type]
        std=encoder.std,  # type: ignore[arg-type]
        crop_pct=encoder.crop_pct if crop_pct is None else crop_pct,
        seed=seed,
        num_threads=threads(),
        device="gpu" if device.type == "cuda" else "cpu",
        max_image_bytes=most_bytes,
        max_image_pixels=most_pixels,
    )


@contextmanager
def _images_left(data: str) -> Iterator[None]:
    """Tell in one line where every file has turned out to be bad."""
    try:
        yield
    except NoImageLeftError as error:
        raise ValueError(_unmeasurable(data, str(error))) from error
    except NothingToEvaluateError as error:
        with alike():
            raise ValueError(_unmeasurable(data, NONE_MEASURED)) from error


def _skipped(datamodule: ContrastiveDataModule) -> list[list[str]]:
    """Files that were left out by any process."""
    every = dict.fromkeys(entry for part in exchange(datamodule.skipped) for entry in part)
    return [list(entry) for entry in shorten(list(every))]


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have deleted it meanwhile
    write_file(path, json.dumps(content, indent=2) + "\n")
    print(f"written to  {path}")


def _told_of(datamodule: ContrastiveDataModule) -> dict[str, Any]:
    return {
        "data": datamodule.root,
        "held_out": datamodule.held_out,
        "size": datamodule.size,
        "crop_pct": datamodule.crop_pct,
        "classes": datamodule.num_classes,
    }


def _find_images(datamodule: ContrastiveDataModule, data: str) -> None:
    with patient() as group:
        once_a_machine(datamodule.prepare_data, group)
        with together(group):  # each process looks for itself where the list could not be kept
            datamodule.setup()
            if datamodule.unmeasurable:
                raise ValueError(_unmeasurable(data, datamodule.unmeasurable))
    try:
        datamodule.check_equal()
    except UnequalImagesError as error:
        with alike():
            raise ValueError(str(error)) from error


def _data(weights: Path, encoder: Encoder, data: str | None, held_out: str | None) -> tuple[str, str | None]:
    """The data to evaluate on, and those to measure on: as given, or what the encoder was trained with."""
    if held_out is not None:
        held_out = absolute_data(held_out)
    if data is not None:
        return absolute_data(data), held_out
    if encoder.data is None:
        raise ValueError(f"{weights} does not say what it was trained on: give --data")
    run_dir = RunDirectory.of(find_weights(weights).resolve()).path
    if encoder.evaluation:
        return find_data(encoder.evaluation, run_dir), held_out
    if held_out is None and encoder.held_out:
        held_out = find_data(encoder.held_out, run_dir)
    return find_data(encoder.data, run_dir), held_out


def _unmeasurable(data: str, why: str) -> str:
    return f"kNN and linear probe cannot be measured on {data}: {why}"


def _heading(encoder: Encoder, file: Path, data: str, datamodule: ContrastiveDataModule) -> str:
    history = "".join(f", {encoder.origin[unit]} {unit}" for unit in ("epochs", "steps") if unit in encoder.origin)
    left_out = f"\n            {summarise(datamodule.skipped)}" if datamodule.skipped else ""
    seen = f" of {datamodule.size / datamodule.crop_pct:.0f}" if datamodule.crop_pct < 1 else ""
    return (
        f"encoder     {file} ({encoder.config.name}{history})\n"
        f"data        {data}: {datamodule.taken}, {datamodule.size} px{seen}{left_out}"
    )


def _table(found: Evaluation, half: bool) -> str:
    probe = found.linear
    seen = "random crop and flip every epoch" if found.augmented else "features computed once, without augmentation"
    width = f"{found.features} features{' in float16' if half else ''}"
    lines = [
        f"images      {found.training_images:,} to learn from, {found.queries:,} held out; {width}",
        f"kNN         {found.knn:.2f} %  (k = {found.k}, temperature {found.temperature:g})",
        f"linear      {probe.top1[probe.best]:.2f} %  ({found.epochs} epochs, batch {found.batch_size}, {seen})",
        "  rate      top-1" + ("     top-5" if probe.top5 else ""),
    ]
    for index, (rate, top1) in enumerate(zip(probe.rates, probe.top1, strict=True)):
        top5 = f"  {probe.top5[index]:6.2f} %" if probe.top5 else ""
        lines.append(f"  {rate:<8g}{top1:6.2f} %{top5}{'  <- best' if index == probe.best else ''}")
    lines.append("The best rate is chosen on the held-out images themselves, as is the custom.")
    return "\n".join(lines)


def _place(output: Path | None, weights: Path, data: str, *name: Callable[[RunDirectory, str], Path]) -> Path:
    """Where the result goes, by default as `_beside` says, found to be writable by the first process, which writes.

    Raises:
        OSError: it is not.
    """
    output = output or _beside(weights, data, *name)
    if not world()[0]:
        check_output(output)
    return output


def _beside(weights: Path, data: str, name: Callable[[RunDirectory, str], Path] = RunDirectory.evaluation) -> Path:
    """Where the result goes: into the run directory if there is one."""
    plain = "-".join(re.findall(r"\w+", Path(data).resolve().name))  # a pattern has braces, and dots
    if weights.is_dir():
        return name(RunDirectory(weights), plain or "data")
    beside = name(RunDirectory(weights.parent), plain or "data")
    if weights.suffix == SUFFIX:
        return beside.with_name(f"{weights.stem}-{beside.name}")
    run = RunDirectory.of(weights.resolve())
    return run.path / beside.name if run.config.is_file() else beside

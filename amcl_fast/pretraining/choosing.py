"""A recipe for images of which nobody has said how they are to be trained on: by their number, size and the device."""

import io
import json
import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..data.choice import held_out_part
from ..data.reading.contents import Contents
from ..data.scan.headers import BadImage
from ..data.scan.limits import DEFAULT_LIMITS, Limits
from ..data.sources.find import find_images
from ..data.sources.named import data_path
from ..launch import by_others, rank, threads
from ..paths import absolute_data
from ..recipes import recipe_files, recipes_in_short
from .config_files import of_recipe
from .lightning_cli import parsed
from .short_names import with_long_names

if TYPE_CHECKING:
    from ..data.sources.folder import Sources

# Lightning's launcher starts the other processes with the same command line; they inherit what the first has chosen.
_VARIABLE = "AMCL_FAST_CHOSEN"
_LOOKED_AT = 256  # images whose size is asked for
_GREY = ("1", "L", "LA", "I", "I;16")
# Images seen in all, of which the number of epochs follows: 400 epochs of CIFAR-10 on GPUs, minutes on a CPU.
_SEEN, _SEEN_ON_CPU = 20_000_000, 100_000
_MANY = 200_000  # images of which a ResNet-50 learns more than a ResNet-18
_LARGE_MEMORY = 20 << 30  # bytes of a GPU that holds the larger batches
_THREADS, _WARMUP = 8, 10  # of the recipes of photographs; epochs


@dataclass(frozen=True)
class Facts:
    """What a recipe is chosen by.

    Attributes:
        images: to train on.
        classes: with a label, 0 without.
        side: median of their shorter sides, in pixels.
        grey: whether they have one channel.
        gpus: that are trained on; 0: the CPU.
        memory: bytes of the smallest of these.
        threads: processors for each process.
        epochs: of the training, where they are given.
    """

    images: int
    classes: int
    side: int
    grey: bool = False
    gpus: int = 0
    memory: int = 0
    threads: int = 2
    epochs: int | None = None

    def __str__(self) -> str:
        of = f" in {self.classes:,} classes" if self.classes else ""
        colour = "grey" if self.grey else "colour"
        device = f"{self.gpus} GPU{'s' * (self.gpus > 1)}" if self.gpus else "no GPU"
        return f"{self.images:,} images{of}, shorter side {self.side} px (median), {colour}; {device}"


@dataclass(frozen=True)
class Choice:
    """A recipe and what is set on top.

    Attributes:
        recipe: its name.
        backbone: the encoder, in words.
        settings: by their names on the command line.
    """

    recipe: str
    backbone: str
    settings: dict[str, int | str]

    @property
    def arguments(self) -> list[str]:
        """The settings as the command line has them."""
        return [f"--{name}={value}" for name, value in self.settings.items()]


def choose_recipe(data: str | None, settings: Sequence[str]) -> tuple[str, list[str]]:
    """A recipe for the images that are given, and settings of it; the first process tells what and why.

    Args:
        data: as data.root.
        settings: of the command line, which go before what is chosen.

    Raises:
        ValueError: there are no images given, or none of them is usable, a setting is wrong, or what starts the
            processes is not ours.
        OSError: they cannot be read.
    """
    written, settings = settings, with_long_names(settings)
    root = data if data is not None else _given(settings, "data.root")
    if root is None:
        raise ValueError(f"--recipe must be given, or settings by --config, got neither; recipes: {recipes_in_short()}")
    if by_others():
        raise ValueError(
            "--recipe must be given under torchrun or srun, got none; "
            f"`amcl-fast pretrain --data {shlex.quote(root)}` in one process prints one for these images"
        )
    if rank() and (told := os.environ.get(_VARIABLE)):
        recipe, arguments = json.loads(told)
        return recipe, arguments
    # A setting that is wrong is told before images are looked for.
    parsed([*of_recipe(None, recipe_files("demo")), *settings])
    facts = _facts(root, settings)
    choice = choose(facts)
    given = {name: value for name in choice.settings if (value := _given(settings, name)) is not None}
    _tell(facts, choice, given, [*(["--data", data] if data is not None else []), *written])
    choice = replace(choice, settings={name: value for name, value in choice.settings.items() if name not in given})
    os.environ[_VARIABLE] = json.dumps([choice.recipe, choice.arguments])
    return choice.recipe, choice.arguments


def choose(facts: Facts) -> Choice:
    """The recipe of some images; a function of these facts alone."""
    if not facts.gpus:
        size = 32 if facts.side <= 48 else 64
        recipe, backbone, most, seen = "simclr-builtin-amcl", "ResNet-18 of a quarter of the width", 128, _SEEN_ON_CPU
        epochs = _rounded(min(max(seen / facts.images, 1), 100))
    else:
        size = next((size for limit, size in ((48, 32), (80, 64), (128, 96), (180, 128)) if facts.side <= limit), 224)
        large = facts.memory >= _LARGE_MEMORY
        if size <= 64:
            recipe, backbone = f"simclr-{'cifar10' if size == 32 else 'stl10'}-best", "ResNet-18"
            most = 512 if large else 256
        elif facts.images >= _MANY:
            recipe, backbone, most = "simclr-imagenet1k-best", "ResNet-50", 128 * (1 + large) * facts.gpus
        else:
            recipe, backbone, most = "simclr-imagenet100-best", "ResNet-18", 128 * (1 + large) * facts.gpus
        epochs = _rounded(min(max(_SEEN / facts.images, 100), 800))
    if facts.epochs is not None:
        epochs = max(facts.epochs, 1)
    chosen: dict[str, int | str] = {
        "data.size": size,
        "data.batch_size": _batch(facts.images, most, max(facts.gpus, 1)),
        "trainer.max_epochs": epochs,
        "knn.every_n_epochs": max(epochs // 10, 1),
    }
    steps = facts.images // int(chosen["data.batch_size"])
    if steps < 50:
        chosen["trainer.log_every_n_steps"] = max(steps // 4, 1)
    if facts.images < 5000:
        chosen["knn.k"] = 20  # of the usual 200 most would be of other classes
    if size <= 64 and facts.grey:
        chosen["data.augmentation"] = "ade"  # no greyscale
    if size > 64 and epochs <= _WARMUP:
        chosen["model.schedule.warmup_epochs"] = epochs // 10
    if size > 64 and facts.threads < _THREADS:
        chosen["data.num_threads"] = facts.threads
    return Choice(recipe, backbone, chosen)


def _batch(images: int, most: int, processes: int) -> int:
    """A power of two for each process, of which an epoch has four, or all images of a data set that is so small."""
    each = max(min(images // 4, most) // processes, 16)
    each = min(1 << each.bit_length() - 1, max(images // processes, 1))
    return each * processes


def _rounded(number: float) -> int:
    """To its first digit."""
    return int(float(f"{number:.1g}"))


def _facts(root: str, settings: Sequence[str]) -> Facts:
    held_out = _given(settings, "data.held_out")
    limits = _limits(settings)
    found = find_images(
        data_path(absolute_data(root)),
        data_path(absolute_data(held_out)) if held_out else None,
        tell=not rank(),
        limits=limits,
    )
    images = _count(found)
    images = min(images, _number(settings, "data.limit") or images)
    side, grey = _looks(found, limits)
    gpus = _gpus(settings)
    memory = min((torch.cuda.get_device_properties(gpu).total_memory for gpu in range(gpus)), default=0)
    epochs = _number(settings, "trainer.max_epochs")
    return Facts(images, len(found.train.classes), side, grey, gpus, memory, threads(), epochs)


def _count(found: "Sources") -> int:
    """How many images are trained on."""
    held_out = 0 if found.held_out is not None else int(held_out_part(found.train).sum())
    return len(found.train.files) - held_out + (len(found.unlabelled.files) if found.unlabelled else 0)


def _looks(found: "Sources", limits: Limits) -> tuple[int, bool]:
    """Median of the shorter sides, in pixels, and whether images are grey: of a few spread over all of them."""
    from PIL import Image

    contents, sides, grey = Contents(limits), [], 0
    files = found.train.files or found.unlabelled.files  # type: ignore[union-attr]  # one of them has images
    for place in np.linspace(0, len(files) - 1, min(_LOOKED_AT, len(files))).astype(int).tolist():
        content = bytearray()

        def room(size: int, content: bytearray = content) -> memoryview:
            content[:] = bytes(size)
            return memoryview(content)

        with suppress(BadImage, OSError, Image.DecompressionBombError):
            contents.read(os.fsencode(files[place]), room)
            with Image.open(io.BytesIO(content)) as image:
                sides.append(min(image.size))
                grey += image.mode in _GREY
    return (int(np.median(sides)), 2 * grey > len(sides)) if sides else (224, False)


def _gpus(settings: Sequence[str]) -> int:
    """GPUs that a run with these settings uses."""
    there = torch.cuda.device_count()
    if _given(settings, "trainer.accelerator") not in (None, "auto", "gpu", "cuda"):
        return 0
    wanted = _number(settings, "trainer.devices")
    return there if wanted is None or wanted < 0 else min(wanted, there)  # -1 is all of them


def _limits(settings: Sequence[str]) -> Limits:
    """What the command line says of the largest image; what is none, such as -1, is refused by its name later."""
    given = (_number(settings, f"data.max_image_{unit}") for unit in Limits._fields)
    return Limits(*(max(most or 0, 0) or usual for most, usual in zip(given, DEFAULT_LIMITS, strict=True)))


def _number(settings: Sequence[str], name: str) -> int | None:
    """The integer that the command line sets a setting to; None if it sets none."""
    with suppress(ValueError):
        return int(_given(settings, name) or "")
    return None


def _given(settings: Sequence[str], name: str) -> str | None:
    """What the command line sets a setting to; None if it does not."""
    found = None
    for place, setting in enumerate(settings):
        option, equals, value = setting.partition("=")
        if option == f"--{name}":
            found = value if equals else next(iter(settings[place + 1 :]), None)
    return found


def _tell(facts: Facts, choice: Choice, given: dict[str, str], written: Sequence[str]) -> None:
    if rank():
        return
    own = {**choice.settings, **given}
    command = ["amcl-fast", "pretrain", "--recipe", choice.recipe]
    command += [part for name in own if name not in given for part in (f"--{name}", str(own[name]))]
    print(f"no --recipe given: {facts}")
    epochs = str(own["trainer.max_epochs"])
    length = f"{own['data.batch_size']} images a batch, {epochs} epoch{'s' * (epochs != '1')}"
    print(f"chosen: {choice.recipe} at {own['data.size']} px, {choice.backbone}, {length}; other settings go before it")
    print(f"the same again: {shlex.join([*command, *written])}", flush=True)

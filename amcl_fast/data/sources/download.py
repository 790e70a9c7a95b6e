"""CIFAR-10, CIFAR-100 and STL-10, fetched by torchvision and kept as folders of PNG files."""

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from amcl_fast.data.cache import cache_folder, make_folder
from amcl_fast.runs.in_place import refuse_links

log = logging.getLogger(__name__)

DOWNLOADS = ("cifar10", "cifar100", "stl10")


def prepare_download(name: str) -> Path:
    """The folder of a data set in the cache, with train/CLASS/ and test/CLASS/ below; fetched on the first
    call.

    STL-10 also gets unlabeled/, its 100,000 images without a label.

    Args:
        name: one of `DOWNLOADS`.

    Raises:
        ValueError: another name.
        ConnectionError: the download failed; the message names the remedies.
        OSError: the cache cannot be written.
    """
    if name not in DOWNLOADS:
        raise ValueError(f"name must be one of {DOWNLOADS}, got {name!r}")
    target = cache_folder() / "datasets" / name
    if target.is_dir():
        return target
    refuse_links(target)
    make_folder(target.parent)
    log.info("fetching %s into %s", name, target)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}.") as scratch:
        try:
            splits = _fetch(name, os.path.join(scratch, "archive"))
        except (OSError, RuntimeError) as error:
            raise ConnectionError(
                f"{name} could not be downloaded ({error}). Without a network: unpack the data set anywhere "
                "as ROOT/train/CLASS/IMAGE and ROOT/test/CLASS/IMAGE and give that path as root, or use "
                "root='builtin', which needs no download"
            ) from error
        images = Path(scratch, "images")
        for split, dataset in splits.items():
            _write(dataset, images / split)
        images.rename(target)
    return target


def _fetch(name: str, folder: str) -> dict[str, Any]:
    from torchvision import datasets

    if name == "stl10":
        splits = {"train": "train", "test": "test", "unlabeled": "unlabeled"}
        return {ours: datasets.STL10(folder, split=theirs, download=True) for ours, theirs in splits.items()}
    dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    return {split: dataset(folder, train=split == "train", download=True) for split in ("train", "test")}


def _write(dataset: Any, folder: Path) -> None:
    """Write its (PIL image, label) pairs to folder/CLASS/NUMBER.png, those without a label to folder/."""
    for number, (image, label) in enumerate(dataset):
        parent = folder / dataset.classes[label] if label >= 0 else folder
        parent.mkdir(parents=True, exist_ok=True)
        # The fastest to write and read; a few percent larger.
        image.save(parent / f"{number:06}.png", compress_level=1)

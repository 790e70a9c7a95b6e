"""Loaders of images that hold their number, and what is asked of their batches."""

from pathlib import Path

import torch
from PIL import Image

from amcl_fast.data import Augmentation, ContrastiveDataModule, ContrastiveLoader
from amcl_fast.data.graph import Output
from amcl_fast.data.locations import member
from amcl_fast.data.scan.images import Images
from amcl_fast.data.sources.find import find_images
from tests.helpers.small_shards import samples

RAW = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}
PLAIN = Augmentation.from_letters("")
EVERYTHING = Augmentation.from_letters("abcde")


def numbered(folder: Path, count: int, classes: int = 4) -> Images:
    """Flat images whose red is their number, of class number mod `classes`."""
    folder.mkdir()
    files = []
    for number in range(count):
        files.append(str(folder / f"{number:03}.png"))
        Image.new("RGB", (8, 8), (number, 37 * number % 256, 91 * number % 256)).save(files[-1])
    return Images(files, [number % classes for number in range(count)], [str(c) for c in range(classes)])


def loader(images, augmentation=PLAIN, batch_size=8, threads=2, **options):
    output = Output(size=8, batch_size=batch_size, num_threads=threads, **RAW)
    return ContrastiveLoader(images, [augmentation] * 2, output, **options)


def numbers(batch):
    """Which of the `numbered` images a batch of plain views holds."""
    return batch[0][0][:, 0, 0, 0].round().int().tolist()


def epochs(data, count):
    """Copies of the batches of some epochs."""
    return copies(batch for _ in range(count) for batch in data)


def copies(batches):
    return [(tuple(view.clone() for view in views), labels) for views, labels in batches]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for (views, labels), (other_views, other_labels) in zip(ours, theirs, strict=True):
        assert torch.equal(labels, other_labels)
        assert all(torch.equal(a, b) for a, b in zip(views, other_views, strict=True))


def corrupt(path):
    """Damage that no header check can see, of the pixels of a PNG."""
    content = bytearray(Path(path).read_bytes())
    start = content.index(b"IDAT") + 6
    content[start : start + 4] = b"\xff\xff\xff\xff"
    Path(path).write_bytes(content)


def in_shards(make_shards):
    """30 flat images whose red is their number, in three tars."""
    root = make_shards({f"{n}.tar": samples(range(10 * n, 10 * n + 10), 4) for n in range(3)})
    return root, find_images(root).train


def overwrite(location, content, offset=0):
    """Change bytes within a tar, at their place in a member."""
    place = member(location)
    with open(place.shard, "r+b") as file:
        file.seek(place.offset + offset)
        file.write(content)


def prepared(root, **options):
    data = ContrastiveDataModule(root=str(root), **{"size": 8, "batch_size": 4, "device": "cpu", **options})
    data.prepare_data()
    data.setup("fit")
    return data


def pixels_and_labels(loader):
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    return images, labels

"""A dataset of images of any maker, read by place: torchvision's, Hugging Face's, one of a user's own."""

import io
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from amcl_fast.data.reading.reader import Encoded
from amcl_fast.data.reading.reduction import Reduction, plain
from amcl_fast.data.scan.headers import BadImage
from amcl_fast.data.scan.limits import DEFAULT_LIMITS, Limits

_IMAGE_KEYS = ("image", "img", "pixel_values", "jpg", "png")
_LABEL_KEYS = ("label", "labels", "fine_label", "target")
_OF_LABELS = ("targets", "labels", "_labels")
"""Where torchvision's datasets keep all labels."""


class Items:
    """Images and labels of a dataset.

    Attributes:
        name: of its class, for people.
        labels: (n,) int64, -1 without a label; None where the dataset does not tell them without reading every image.
        classes: their names.
    """

    def __init__(self, dataset: Any, name: str = "data") -> None:
        """Look at the dataset's first item.

        Args:
            dataset: `len` and items by place: an image, (image, label), or a mapping with both.
            name: of the argument, for locations and errors.

        Raises:
            ValueError: it is empty, or its first item holds no image.
        """
        self._dataset, self._argument = dataset, name
        self.name = class_name(dataset)
        if not len(dataset):
            raise ValueError(f"{name} must have images, got a {self.name} without any")
        try:
            self.picture(0)
        except ValueError:
            raise
        except Exception as error:  # of any code of others
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise ValueError(f"{name} must give images by place, got an error of {self.name}[0]: {said}") from error
        self.labels = _labels(dataset)
        self.classes = _classes(dataset, self.labels)

    def __len__(self) -> int:
        return len(self._dataset)

    def location(self, place: int) -> str:
        """What a place is called among files: data[7]."""
        return f"{self._argument}[{place}]"

    def picture(self, place: int, limits: Limits | None = None) -> Image.Image:
        """The image at a place, in RGB or grey.

        Args:
            place: in the dataset.
            limits: what is too large to be decoded, unless the dataset itself has done so; None: nothing is.

        Raises:
            ValueError: what is there is no image.
            BadImage: it is too large.
        """
        image = _image_of(self._dataset[place])
        picture = _picture(image, self._argument)
        if limits is not None:
            encoded = len(image["bytes"]) if isinstance(image, Mapping) else 0
            if reason := limits.refuse_bytes(encoded) or limits.refuse_pixels(*picture.size):
                raise BadImage(reason)
        return plain(picture)

    def label(self, place: int) -> int:
        """Its label, -1 without one."""
        return -1 if self.labels is None else int(self.labels[place])


class ItemReader:
    """What `Reader` is for files, for images of datasets: read ahead by threads, as bytes that DALI decodes."""

    def __init__(
        self, parts: Sequence[Items], limits: Limits, reduction: Reduction | None, threads: int, ahead: int = 2
    ) -> None:
        self.ahead, self._limits = ahead, limits
        self._parts = {_part(items.location(0)): items for items in parts}
        self._reduction, self._threads = reduction, threads
        self._pool: ThreadPoolExecutor | None = None
        self._asked: deque[list[Future[np.ndarray]]] = deque()

    def request(self, files: list[str], coming: Sequence[str] = ()) -> None:
        """Have items read, given by their locations."""
        self._asked.append(self._begin(files))

    def take(self) -> Encoded:
        """The oldest list that was requested."""
        return _ended(self._asked.popleft())

    def read(self, files: list[str]) -> Encoded:
        """Items that are wanted out of turn."""
        return _ended(self._begin(files))

    def close(self) -> None:
        """End the threads and forget what is pending."""
        self._asked.clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _begin(self, files: list[str]) -> "list[Future[np.ndarray]]":
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, "dataset")
        return [self._pool.submit(self._one, location) for location in files]

    def _one(self, location: str) -> np.ndarray:
        picture = self._parts[_part(location)].picture(place_of(location), self._limits)
        factor = self._reduction.factor(*picture.size) if self._reduction else 1
        if factor > 1:
            picture = picture.reduce(factor)
        # Neither encoded nor decoded: the pixels behind a header.
        rgb = picture.convert("RGB")
        return np.frombuffer(b"P6 %d %d 255\n" % rgb.size + rgb.tobytes(), np.uint8)


def reader_of(*parts: Items | None, limits: Limits = DEFAULT_LIMITS) -> Callable[[Reduction | None, int], ItemReader]:
    """What makes the reader of these."""
    return partial(ItemReader, [items for items in parts if items is not None], limits)


def place_of(location: str) -> int:
    """The place in the dataset that `Items.location` has named."""
    return int(location.removesuffix("]").rpartition("[")[2])


def _part(location: str) -> str:
    return location.rpartition("[")[0]


def class_name(thing: object) -> str:
    """package.module.Class of an object, or of a class."""
    kind = thing if isinstance(thing, type) else type(thing)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _ended(futures: "Sequence[Future[np.ndarray]]") -> Encoded:
    images, bad = [], {}
    for place, future in enumerate(futures):
        try:
            images.append(future.result())
        except Exception as error:  # of any code of others: that image is left out
            images.append(np.empty(0, np.uint8))
            name = "" if isinstance(error, BadImage) else f"{type(error).__name__}: "
            bad[place] = f"{name}{' '.join(str(error).split())[:200]}"
    return Encoded(images, bad, [])


def _image_of(item: Any) -> Any:
    if isinstance(item, Mapping):
        for key in _IMAGE_KEYS:
            if key in item:
                return item[key]
        raise ValueError(f"data must give items with one of {', '.join(_IMAGE_KEYS)}, got {', '.join(map(str, item))}")
    return item[0] if isinstance(item, tuple | list) else item


def _picture(image: Any, name: str) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, Mapping) and image.get("bytes"):  # of Hugging Face, with Image(decode=False)
        return Image.open(io.BytesIO(image["bytes"]))
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu().numpy()
        if image.ndim == 3:
            image = image.transpose(1, 2, 0)
    if not isinstance(image, np.ndarray) or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3))):
        got = f"shape {image.shape}" if isinstance(image, np.ndarray) else class_name(image)
        raise ValueError(f"{name} must give PIL images, tensors (3, H, W) or arrays (H, W, 3), got {got}")
    if image.dtype != np.uint8:
        if image.dtype.kind != "f" or not 0 <= image.min() <= image.max() <= 1:
            raise ValueError(
                f"{name} must give pixels from 0 to 255 as uint8, or from 0 to 1 as floats, which are normalised by "
                f"data.mean and data.std, got {image.dtype} from {image.min():.3g} to {image.max():.3g}"
            )
        image = (image * 255).round().astype(np.uint8)
    return Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)


def _labels(dataset: Any) -> np.ndarray | None:
    """All labels, without reading the images."""
    found: Any = None
    if hasattr(dataset, "indices") and hasattr(dataset, "dataset"):  # torch's Subset
        whole = _labels(dataset.dataset)
        return None if whole is None else whole[np.asarray(dataset.indices)]
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, list):  # Hugging Face's
        found = next((dataset[key] for key in _LABEL_KEYS if key in columns), None)
    elif isinstance(tensors := getattr(dataset, "tensors", None), tuple) and len(tensors) > 1:
        found = tensors[1]
    else:
        found = next((getattr(dataset, name) for name in _OF_LABELS if hasattr(dataset, name)), None)
    if found is None:
        return None
    with suppress(TypeError, ValueError):
        labels = np.array([-1 if label is None else label for label in found])
        if labels.shape == (len(dataset),) and labels.dtype.kind in "iu":
            return np.maximum(labels.astype(np.int64), -1)
    return None


def _classes(dataset: Any, labels: np.ndarray | None) -> list[str]:
    """Names of the classes, numbers where the dataset has none."""
    if labels is None:
        return []
    while hasattr(dataset, "indices") and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping):
        label = next((features[key] for key in _LABEL_KEYS if key in features), None)
        names = getattr(label, "names", None)
    else:
        names = getattr(dataset, "classes", None)
    count = int(labels.max(initial=-1)) + 1
    names = [str(name) for name in names] if isinstance(names, list | tuple) else []
    return names if len(names) >= count else [str(number) for number in range(count)]

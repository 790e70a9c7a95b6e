"""What kNN found when it was measured last, as it is kept: how right it is in every class, and some nearest images."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .files import write_file


@dataclass(frozen=True)
class Neighbours:
    """kNN of one moment, class by class, and the nearest training images of a few held-out ones.

    Attributes:
        step: optimiser step at which it was measured.
        classes: (n,) names of all classes.
        right, asked: (n,) held-out images of each class that kNN takes for it, and all of them.
        images: (Q, 1 + K, H, W, 3) uint8: a held-out image, then its K nearest training images, the nearest first; an
            image that could not be read again is black. Q = 0 where the data cannot be asked for single images.
        labels: (Q, 1 + K) index into `classes`.
        similarity: (Q, K) cosine of the features.
    """

    step: int
    classes: NDArray[np.str_]
    right: NDArray[np.int64]
    asked: NDArray[np.int64]
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    similarity: NDArray[np.float32]

    def save(self, path: Path) -> None:
        """Write it as .npz; the file appears when it is whole. Its folder is made, those above are not.

        Raises:
            OSError: it cannot be written.
        """
        path.parent.mkdir(exist_ok=True)
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        write_file(path, lambda file: np.savez_compressed(file, **arrays))

    @classmethod
    def load(cls, path: Path) -> "Neighbours":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is none of these.
        """
        with np.load(path, allow_pickle=False) as file:
            missing = {field.name for field in fields(cls)} - set(file.files)
            if missing:
                raise ValueError(f"{path} holds no neighbours: it lacks {', '.join(sorted(missing))}")
            arrays = {field.name: file[field.name] for field in fields(cls)}
        return cls(**(arrays | {"step": int(arrays["step"])}))

"""What kNN found when it was measured last, as it is kept: how right it is in every class, and some nearest images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .arrays import read_arrays, save_arrays


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
        save_arrays(self, path)

    @classmethod
    def load(cls, path: Path) -> "Neighbours":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is none of these.
        """
        arrays = read_arrays(cls, path, "record of neighbours")
        return cls(**(arrays | {"step": int(arrays["step"])}))

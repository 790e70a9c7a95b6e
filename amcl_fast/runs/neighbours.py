"""What kNN found when it was measured last, as it is kept: how right it is in every class, and some nearest images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from .arrays import read_arrays, save_arrays
from .reading import damaged


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
    classes: Annotated[NDArray[np.str_], "n"]
    right: Annotated[NDArray[np.int64], "n"]
    asked: Annotated[NDArray[np.int64], "n"]
    images: Annotated[NDArray[np.uint8], "Q 1+K H W 3"]
    labels: Annotated[NDArray[np.int64], "Q 1+K|0"]
    similarity: Annotated[NDArray[np.float32], "Q K|0"]

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
            DamagedError: the file is none of these.
        """
        kept = cls(**read_arrays(cls, path))
        if kept.labels.size and not 0 <= kept.labels.min() <= kept.labels.max() < len(kept.classes):
            raise damaged(path, f"labels must be among {len(kept.classes)} classes, got others")
        if not ((kept.right >= 0) & (kept.right <= kept.asked)).all():
            raise damaged(path, "right must be at most asked, image by image, got more")
        return kept

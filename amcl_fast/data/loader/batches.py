"""What both loaders hand to DALI and make of a batch."""

from collections.abc import Sequence
from weakref import WeakMethod

import numpy as np
import torch
from torch import Tensor

from amcl_fast.data.graph import Source


def labels_at(labels: np.ndarray, places: list[int]) -> Tensor:
    """(n,) int64 labels of a batch."""
    return torch.from_numpy(labels[places].astype(np.int64))


def loosely(method: Source) -> Source:
    """The method of a loader that holds the pipeline that holds it: DALI and the processes go when the loader goes."""
    reference = WeakMethod(method)

    def call(batch: int) -> Sequence[np.ndarray]:
        bound = reference()
        assert bound is not None
        return bound(batch)

    return call

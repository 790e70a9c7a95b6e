"""Features on a plane such that neighbours stay neighbours, by UMAP or t-SNE, whichever is installed."""

import importlib
import warnings
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..progress import doing

_LEAST = 10
"""Images of which a map says nothing that a look at them does not."""

NO_MAP: tuple[NDArray[np.float32], str] = np.empty((0, 2), np.float32), ""


def neighbourhoods(features: Tensor) -> tuple[NDArray[np.float32], str]:
    """Places (n, 2) of features (n, d), and the name of what has found them; `NO_MAP` where nothing is installed.

    UMAP (umap-learn) comes first, then t-SNE (scikit-learn). Both are of cosine distances, begin with principal axes or
    the spectrum, and have a seed: the same features give the same map. Whatever one of them fails of is a warning.
    """
    if len(features) < _LEAST:
        return NO_MAP
    unit = F.normalize(features.float(), dim=1).cpu().numpy()
    for module, name, find in (("umap", "UMAP", _umap), ("sklearn", "t-SNE", _tsne)):
        if find_spec(module) is None:
            continue
        try:
            with doing(f"placing {len(unit):,} images by {name}"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return np.asarray(find(unit), np.float32), name
        except Exception as error:  # a picture is no reason to end a run
            warnings.warn(f"no map of features by {name}: {error}", stacklevel=2)
    return NO_MAP


def _umap(unit: NDArray[np.float32]) -> Any:
    umap = importlib.import_module("umap")
    settings = {"n_neighbors": min(15, len(unit) - 1), "metric": "cosine", "random_state": 0, "n_jobs": 1}
    return umap.UMAP(n_components=2, **settings).fit_transform(unit)


def _tsne(unit: NDArray[np.float32]) -> Any:
    manifold = importlib.import_module("sklearn.manifold")
    # Of unit rows the squared distance is twice that of the cosine.
    settings = {"perplexity": min(30.0, (len(unit) - 1) / 3), "init": "pca", "learning_rate": "auto"}
    return manifold.TSNE(n_components=2, random_state=0, **settings).fit_transform(unit)

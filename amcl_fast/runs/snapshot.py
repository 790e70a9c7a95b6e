"""What the loss saw at one moment of training, as it is kept: similarities and temperatures of pairs, an embedding."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from .arrays import read_arrays, save_arrays
from .reading import damaged


@dataclass(frozen=True)
class Snapshot:
    """Similarity and temperature of pairs, per head, as the loss forms them, and an embedding of held-out images.

    Pairs are of images; in Barlow Twins they are of channels, similarity is their correlation, and the positive of a
    channel is itself in the other view. SimSiam's loss has no negatives: those here are the other images.

    Attributes:
        framework: name of the method's class.
        step: optimiser step at which it was taken.
        tau_min, tau_max: range of the temperature, equal if it is constant; before its mean is pinned, if it is.
        top_k: hardest negatives that the loss selects per anchor and head, 0 if it takes all.
        positive_similarity, positive_tau: (C, N) of two views of an image.
        hardest_similarity, hardest_tau: (C, M) of a sample of the selected negatives.
        random_similarity, random_tau: (C, M) of a sample of all negatives.
        views: (2, P, H, W, 3) uint8, the first pairs of views as pictures; where they are of two sizes the smaller one
            is enlarged, its pixels as squares.
        embedding: (E, 2) of the encoder's features of held-out images, on their first two principal axes; E = 0 if
            none is held out.
        embedding_variance: (2,) share of the variance that each axis shows.
        labels: (E,) index into `classes`.
        classes: names of the classes in the embedding.
        pictures: (R, P, H, W, 3) uint8 of what the framework makes of a view of the first images, a kind a row; R = 0
            if it shows nothing, and in files of earlier versions.
        picture_names: (R,) what each row shows.
        map: (E, 2) of the same features, by what keeps neighbours together; (0, 2) where nothing of the kind was
            installed, and in files of earlier versions.
        map_name: of what has made it, "t-SNE" or "UMAP".
        perplexity: (C, N) of the softmax of s/τ over the negatives that the loss takes of each anchor, as a share of
            their number; (0, 0) of a loss without negatives, and in files of earlier versions.
        per_anchor: whether an anchor has one τ, `positive_tau`, for all its pairs.
        pinned: whether the mean of τ is held, so that a single τ may lie beyond `tau_min` and `tau_max`.
    """

    framework: str
    step: int
    tau_min: float
    tau_max: float
    top_k: int
    positive_similarity: Annotated[NDArray[np.float32], "C N"]
    positive_tau: Annotated[NDArray[np.float32], "C N"]
    hardest_similarity: Annotated[NDArray[np.float32], "C M"]
    hardest_tau: Annotated[NDArray[np.float32], "C M"]
    random_similarity: Annotated[NDArray[np.float32], "C L"]
    random_tau: Annotated[NDArray[np.float32], "C L"]
    views: Annotated[NDArray[np.uint8], "2 P H W 3"]
    embedding: Annotated[NDArray[np.float32], "E 2"]
    embedding_variance: Annotated[NDArray[np.float32], "2"]
    labels: Annotated[NDArray[np.int64], "E"]
    classes: Annotated[NDArray[np.str_], "n"]
    pictures: Annotated[NDArray[np.uint8], "R p h w 3"] = field(
        default_factory=lambda: np.empty((0, 0, 1, 1, 3), np.uint8)
    )
    picture_names: Annotated[NDArray[np.str_], "R"] = field(default_factory=lambda: np.empty(0, np.str_))
    map: Annotated[NDArray[np.float32], "E 2|0 2"] = field(default_factory=lambda: np.empty((0, 2), np.float32))
    map_name: str = ""
    perplexity: Annotated[NDArray[np.float32], "C A|0 0"] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    per_anchor: bool = False
    pinned: bool = False

    @property
    def constant_tau(self) -> bool:
        """Whether the temperature is a constant."""
        return self.tau_min == self.tau_max

    @property
    def one_tau(self) -> bool:
        """Whether it is the same for all pairs: a constant, or one number that learns."""
        taus = (self.positive_tau, self.hardest_tau, self.random_tau)
        return not self.per_anchor and all((tau == self.positive_tau.flat[0]).all() for tau in taus)

    @property
    def agreement(self) -> NDArray[np.float64]:
        """Correlation (C, C) of every two heads' similarities of the same negatives.

        0 for a head that finds everything equally similar, its diagonal too.
        """
        similarity = self.random_similarity.astype(np.float64)
        centred = similarity - similarity.mean(1, keepdims=True)
        norm = np.linalg.norm(centred, axis=1, keepdims=True)
        unit = np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 0)
        return unit @ unit.T

    def save(self, path: Path) -> None:
        """Write it as .npz; the file appears when it is whole. Its folder is made, those above are not.

        Raises:
            OSError: it cannot be written.
        """
        save_arrays(self, path)

    @classmethod
    def load(cls, path: Path) -> "Snapshot":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            DamagedError: the file is no snapshot.
        """
        shot = cls(**read_arrays(cls, path))
        if shot.labels.size and not 0 <= shot.labels.min() <= shot.labels.max() < len(shot.classes):
            raise damaged(path, f"labels must be among {len(shot.classes)} classes, got others")
        if min(shot.step, shot.top_k) < 0:
            raise damaged(path, f"step and top_k must not be negative, got {shot.step}, {shot.top_k}")
        if not 0 < shot.tau_min <= shot.tau_max:
            raise damaged(path, f"tau_min must be above 0 and at most tau_max, got {shot.tau_min}, {shot.tau_max}")
        return shot

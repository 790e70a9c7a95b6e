"""What the JSON files of a run hold, as their readers may rely on it; beside these names there may be others."""

from typing import Any, TypedDict


class Facts(TypedDict, total=False):
    """run.json. Earlier versions have fewer; how many images a loader of one's own has is not always known."""

    finished: bool
    data: Any
    training_images: int | None
    classes: int
    measured_images: dict[str, int]
    measured_before: list[dict[str, int | None]]
    measured_epoch: int | None
    unmeasurable: str | None
    epochs: int | None
    steps_per_epoch: int | None
    steps: int
    seconds: float
    versions: dict[str, str]
    machine: dict[str, str | int]


class Probe(TypedDict):
    """A linear probe's best, of a file of `amcl-fast evaluate`."""

    top1: float
    rate: float
    epochs: int
    training_images: str


class Evaluated(TypedDict):
    """A file of `amcl-fast evaluate`."""

    linear: Probe


class Measures(TypedDict, total=False):
    """measures.json of a study's training."""

    knn: float
    ridge: float
    knn_recalibrated: float
    ridge_recalibrated: float
    penalty: dict[str, float]
    batch_norms: int
    recalibrated_on: int
    images: dict[str, int]
    k: int
    temperature: float
    step: int
    seconds: float

"""What an encoder is worth: kNN and linear probe on its features, and raw pixels as the baseline."""

from .evaluation import EncodedBatches, Evaluation, evaluate
from .features import encode, pixel_features
from .knn import knn_accuracy
from .linear import RATES, ProbeResult, ShuffledFeatures, linear_probe

__all__ = [
    "RATES",
    "EncodedBatches",
    "Evaluation",
    "ProbeResult",
    "ShuffledFeatures",
    "encode",
    "evaluate",
    "knn_accuracy",
    "linear_probe",
    "pixel_features",
]

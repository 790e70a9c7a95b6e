"""What an encoder is worth: kNN and linear probe on its features, and raw pixels as the baseline."""

from .evaluation import EncodedBatches, Evaluation, evaluate
from .features import encode, pixel_features
from .fine_tuning import FineTuned, FineTuning, fine_tune
from .knn import knn_accuracy
from .linear import RATES, ProbeResult, ShuffledFeatures, linear_probe

__all__ = [
    "RATES",
    "EncodedBatches",
    "Evaluation",
    "FineTuned",
    "FineTuning",
    "ProbeResult",
    "ShuffledFeatures",
    "encode",
    "evaluate",
    "fine_tune",
    "knn_accuracy",
    "linear_probe",
    "pixel_features",
]

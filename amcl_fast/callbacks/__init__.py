"""What happens around the steps: kNN, checkpoints, exact resume, guards, throughput, signals, reports."""

from ..nonfinite import NonFiniteError
from .checkpoint import Checkpoint, SaveError
from .guard import Guard
from .knn import OnlineKNN
from .metrics import MetricsFile
from .progress import EpochSummary
from .report import Report
from .resume import ExactResume
from .signals import Interrupted, SaveOnSignal
from .skipped import SkippedFiles
from .throughput import Throughput

__all__ = [
    "Checkpoint",
    "EpochSummary",
    "ExactResume",
    "Guard",
    "Interrupted",
    "MetricsFile",
    "NonFiniteError",
    "OnlineKNN",
    "Report",
    "SaveError",
    "SaveOnSignal",
    "SkippedFiles",
    "Throughput",
]

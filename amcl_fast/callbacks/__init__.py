"""What happens around the steps: kNN, checkpoints, exact resume, guards, throughput, signals, reports."""

from ..extras import extras_named

with extras_named("amcl_fast.callbacks"):
    from .checkpoint import Checkpoint, LocalCheckpointIO, RunFolderError, SaveError
    from .draw_report import Report
    from .exact_resume import ExactResume, OpenRun
    from .guard import Guard, NonFiniteError
    from .knn import OnlineKNN
    from .metrics import EventsFile, LastStep, MetricsFile
    from .others import Others
    from .progress import End, EpochSummary, ProgressBar
    from .signals import Interrupted, SaveOnSignal, StopSignals
    from .skipped import SkippedFiles
    from .throughput import Throughput

__all__ = [
    "Checkpoint",
    "End",
    "EpochSummary",
    "EventsFile",
    "ExactResume",
    "Guard",
    "Interrupted",
    "LastStep",
    "LocalCheckpointIO",
    "MetricsFile",
    "NonFiniteError",
    "OnlineKNN",
    "OpenRun",
    "Others",
    "ProgressBar",
    "Report",
    "RunFolderError",
    "SaveError",
    "SaveOnSignal",
    "SkippedFiles",
    "StopSignals",
    "Throughput",
]

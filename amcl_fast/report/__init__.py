"""What a run has to show: similarities and temperatures before and after, curves, one HTML page."""

from ..extras import extras_named

with extras_named("amcl_fast.report"):
    from .compare import write_comparison
    from .page import summarise, write_report
    from .run import Run, read_run
    from .snapshot import Snapshot, capture

__all__ = ["Run", "Snapshot", "capture", "read_run", "summarise", "write_comparison", "write_report"]

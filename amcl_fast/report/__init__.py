"""What a run has to show: similarities and temperatures before and after, curves, one HTML page."""

from typing import TYPE_CHECKING, Any

from ..extras import extras_named

with extras_named("amcl_fast.report"):
    from ..runs.read import Run, read_run
    from ..runs.snapshot import Snapshot
    from .compare import write_comparison
    from .page import summarise, write_report

if TYPE_CHECKING:
    from ..callbacks.capture import capture

__all__ = ["Run", "Snapshot", "capture", "read_run", "summarise", "write_comparison", "write_report"]


def __getattr__(name: str) -> Any:
    if name != "capture":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ..callbacks.capture import capture  # it looks at a model, with the trainer's packages: not to draw

    return capture

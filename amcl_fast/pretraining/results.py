"""The closing lines of a run."""

from pathlib import Path
from typing import Any

from ..callbacks import OnlineKNN, Report
from .lightning_cli import PretrainCLI


def print_results(cli: PretrainCLI) -> None:
    """Print what was measured of a run, and where its files are."""
    if cli.rehearses:
        drawn = "its report was drawn" if cli.callback(Report).path is not None else "it has no report"
        steps = cli.trainer.global_step
        print(f"tried out: {steps} step{'s' * (steps != 1)} of the run trained, and {drawn}; nothing was kept")
        return
    knn = cli.callback(OnlineKNN)
    whole = cli.trainer.current_epoch
    # Of a checkpoint of an earlier version only the setting of the neighbours is known.
    tables = {
        f"kNN accuracy (k = {knn.neighbours or knn.k})": ([("raw pixels", knn.pixels)], knn.untrained, knn.history),
        "linear probe": ([], knn.untrained_probe, knn.probed),
    }
    for title, (rows, untrained, history) in tables.items():
        rows += [("untrained encoder", untrained)]
        rows += [(f"{'after' if epoch <= whole else 'in'} epoch {epoch}", value) for epoch, value in history[-1:]]
        measured = [f"  {name:<18} {accuracy:5.1f} %" for name, accuracy in rows if accuracy is not None]
        if measured:
            print("\n".join([title, *measured]))
    saved = cli.checkpoint.path if cli.checkpoint.enabled else None
    profiler: Any = cli.trainer.profiler  # type: ignore[attr-defined]
    profile = profiler.filename and Path(profiler.dirpath) / f"fit-{profiler.filename}.txt"
    files = {"checkpoint": saved, "report": cli.callback(Report).path, "profile": profile}
    for name, path in files.items():
        if path is not None and path.is_file():
            print(f"{name:<10}  {path}")

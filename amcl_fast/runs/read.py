"""A run directory, read back: all that a report is drawn from."""

import os
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..left_out import count
from .directory import METRICS, RunDirectory
from .neighbours import Neighbours
from .reading import DamagedError, damaged, read_json, read_utf8
from .settings import read_settings
from .shapes import Evaluated, Facts, Measures
from .snapshot import Snapshot
from .table import number, read_table, step_of

Series = tuple[NDArray[np.float64], NDArray[np.float64]]
Kind = TypeVar("Kind")

_MOST_SKIPPED = 1 << 26
"""Bytes of the list of what was left out."""

_LARGEST = 3.5e38
"""What float32 holds, in which nearly everything is logged: beyond that a figure has no axis."""


def head_metric(kind: str, head: int) -> str:
    """Name of the metric that holds a head's mean temperature of its "positive" or "negative" pairs."""
    return f"tau_{kind}_head_{head}"


@dataclass(frozen=True)
class Run:
    """What a run directory holds.

    Attributes:
        folder: the run directory.
        settings: config.yaml, {} without one.
        metrics: name to (step, value) of every logged metric, values only that are finite in float32.
        facts: what `write_facts` kept, {} if nothing.
        skipped: (path, reason) of what was left out, as `write_skipped` lists it.
        evaluations: what `amcl-fast evaluate` left in the folder, by data set.
        before, after: snapshots, None where there is none.
        neighbours: what kNN found at the end, None where there is nothing.
        measures: what a study has measured at the end, {} if nothing.
        damaged: what is missing here since its file is damaged: name of the file to a line that says why.
    """

    folder: Path
    settings: dict[str, Any]
    metrics: dict[str, Series]
    facts: dict[str, Any]
    skipped: list[tuple[str, str]]
    evaluations: dict[str, dict[str, Any]]
    before: Snapshot | None
    after: Snapshot | None
    neighbours: Neighbours | None = None
    measures: dict[str, Any] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)

    def series(self, name: str) -> Series:
        """Steps and values of a metric; empty if it was not logged."""
        return self.metrics.get(name, (np.empty(0), np.empty(0)))

    def last(self, name: str) -> float | None:
        """Latest value of a metric; None if it was not logged."""
        values = self.series(name)[1]
        return float(values[-1]) if len(values) else None

    def epochs(self, steps: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Epochs that are done after each of the steps of a series; None: the run is of a version that did not say.

        The metrics of an optimiser step are logged under its number, from 0 on, and what is measured when training
        has ended under the number of all.
        """
        per_epoch = self.facts.get("steps_per_epoch")
        if not isinstance(per_epoch, int) or per_epoch < 1:
            return None
        end = self.facts.get("steps")
        done = steps + 1 if not isinstance(end, int) else np.minimum(steps + 1, end)
        return done / per_epoch

    def x(self, steps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where the steps of a series stand on an axis of `x_label`: in epochs, if the run says how long one is."""
        epochs = self.epochs(steps)
        return steps if epochs is None else epochs

    @property
    def x_label(self) -> str:
        """What the axis of `x` counts."""
        if self.epochs(np.zeros(1)) is None:
            return "optimiser step"
        per_epoch = self.facts["steps_per_epoch"]
        return f"epoch ({per_epoch:,} step{'s' if per_epoch > 1 else ''} each)"

    @property
    def num_skipped(self) -> int:
        """How much was left out."""
        return count(self.skipped)

    def heads(self, kind: str) -> list[Series]:
        """Mean temperature of every head's "positive" or "negative" pairs; empty if it was not logged."""
        found: list[Series] = []
        while head_metric(kind, len(found)) in self.metrics:
            found.append(self.metrics[head_metric(kind, len(found))])
        return found

    @property
    def tau_kind(self) -> str | None:
        """Of the temperature: "constant"; "learned", one for all pairs; "adaptive"; None without a snapshot."""
        shots = [shot for shot in (self.before, self.after) if shot is not None]
        if not shots:
            return None
        if shots[0].constant_tau:
            return "constant"
        return "learned" if all(shot.one_tau for shot in shots) else "adaptive"

    @property
    def tau_per_anchor(self) -> bool:
        """Whether an anchor has one temperature for all its pairs: what is said of positives holds of negatives."""
        return any(shot.per_anchor for shot in (self.before, self.after) if shot is not None)

    def setting(self, path: str) -> Any:
        """A setting by its dotted path, None if there is none."""
        value: Any = self.settings
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value


def read_run(run_dir: Path, *, partly: bool = False) -> Run:
    """Read a run directory, also one of a run that goes on or was stopped.

    Args:
        run_dir: the folder.
        partly: a damaged file but metrics.csv is no error: what it holds is left out, and `Run.damaged` says so.

    Raises:
        FileNotFoundError: not a run directory, or its training has not begun yet.
        ValueError: a file in it is damaged, or beyond what a run leaves.
        OSError: a file in it cannot be read.
    """
    run_dir = Path(run_dir)
    files = RunDirectory(run_dir)
    there = os.path.lexists(files.metrics), os.path.lexists(files.facts)
    if not any(there):  # a short run may end before anything is logged
        what = "does not exist" if not run_dir.exists() else f"holds no {METRICS}"
        raise FileNotFoundError(f"{run_dir} {what}; expected the folder of a run, such as runs/demo-20261122-031500")
    evaluations = files.evaluations.items()
    left_out: dict[str, str] = {}

    def part(path: Path, read: Callable[[Path], Kind], without: Kind) -> Kind:
        """What a file holds; `without` it where it is not there, or damaged."""
        if not os.path.lexists(path):
            return without
        try:
            return read(path)
        except (OSError, ValueError) as error:
            if not partly:
                raise
            left_out[str(path.relative_to(run_dir))] = " ".join(str(error).split())
            return without

    facts: dict[str, Any] = part(files.facts, lambda path: dict(read_json(path, Facts)), {})
    metrics, whole = _read_metrics(files.metrics) if there[0] else ({}, True)
    if facts.get("finished") and not (whole and (metrics or not facts.get("steps"))):
        missing = DamagedError(f"{files.metrics} is missing, though the run has finished")  # or it had other loggers
        error = damaged(files.metrics, "its end is cut off") if there[0] else missing
        if not partly:
            raise error
        left_out[METRICS] = str(error)
    found = {data: part(path, lambda path: dict(read_json(path, Evaluated)), None) for data, path in evaluations}
    return Run(
        folder=run_dir,
        metrics=metrics,
        settings=part(files.config, read_settings, {}),
        facts=facts,
        skipped=part(files.skipped, _read_skipped, []),
        evaluations={data: of for data, of in found.items() if of is not None},
        before=part(files.snapshot("before"), Snapshot.load, None),
        after=part(files.snapshot("after"), Snapshot.load, None),
        neighbours=part(files.neighbours, Neighbours.load, None),
        measures=part(files.measures, lambda path: dict(read_json(path, Measures)), {}),
        damaged=left_out,
    )


def _read_metrics(path: Path) -> tuple[dict[str, Series], bool]:
    """Metrics, and whether the last line is whole."""
    points: dict[str, tuple[array[float], array[float]]] = {}
    with read_table(path) as table:
        at_step = table.columns.index("step")
        for row in table:
            step = None
            for name, text in zip(table.columns, row, strict=True):
                # What a callback of one's own logs without a step has no place on an axis.
                if text and name != "step" and row[at_step]:
                    step = step_of(row[at_step], path) if step is None else step
                    if abs(value := number(text, path)) <= _LARGEST:
                        steps, values = points.setdefault(name, (array("d"), array("d")))
                        steps.append(step)
                        values.append(value)
    series = {}
    for name, (steps, values) in points.items():
        order = np.argsort(np.array(steps), kind="stable")
        series[name] = np.array(steps)[order], np.array(values)[order]
    return series, table.whole


def _read_skipped(path: Path) -> list[tuple[str, str]]:
    text = read_utf8(path, _MOST_SKIPPED, errors="backslashreplace")
    lines = (line.rpartition("\t") for line in text.splitlines() if line.strip())
    return [(file or reason, reason if file else "") for file, _, reason in lines]

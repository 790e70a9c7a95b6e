"""A run directory, read back: all that a report is drawn from."""

import csv
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..left_out import count
from .directory import METRICS, RunDirectory
from .neighbours import Neighbours
from .settings import read_settings
from .snapshot import Snapshot

Series = tuple[NDArray[np.float64], NDArray[np.float64]]


def head_metric(kind: str, head: int) -> str:
    """Name of the metric that holds a head's mean temperature of its "positive" or "negative" pairs."""
    return f"tau_{kind}_head_{head}"


@dataclass(frozen=True)
class Run:
    """What a run directory holds.

    Attributes:
        folder: the run directory.
        settings: config.yaml, {} without one.
        metrics: name to (step, value) of every logged metric, finite values only.
        facts: what `write_facts` kept, {} if nothing.
        skipped: (path, reason) of what was left out, as `write_skipped` lists it.
        evaluations: what `amcl-fast evaluate` left in the folder, by data set.
        before, after: snapshots, None where there is none.
        neighbours: what kNN found at the end, None where there is nothing.
        measures: what a study has measured at the end, {} if nothing.
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


def read_run(run_dir: Path) -> Run:
    """Read a run directory, also one of a run that goes on or was stopped.

    Raises:
        FileNotFoundError: not a run directory, or its training has not begun yet.
        ValueError: a file in it is damaged, or beyond what a run leaves.
    """
    run_dir = Path(run_dir)
    files = RunDirectory(run_dir)
    if not files.metrics.is_file() and not files.facts.is_file():  # a short run may end before anything is logged
        what = "does not exist" if not run_dir.exists() else f"holds no {METRICS}"
        raise FileNotFoundError(f"{run_dir} {what}; expected the folder of a run, such as runs/demo-20261122-031500")
    snapshots = (files.snapshot(moment) for moment in ("before", "after"))
    before, after = (Snapshot.load(path) if path.is_file() else None for path in snapshots)
    return Run(
        folder=run_dir,
        settings=read_settings(files.config) if files.config.exists() else {},
        metrics=_read_metrics(files.metrics) if files.metrics.is_file() else {},
        facts=_read_json(files.facts) if files.facts.is_file() else {},
        skipped=_read_skipped(files.skipped),
        evaluations={data: _read_json(path) for data, path in files.evaluations.items()},
        before=before,
        after=after,
        neighbours=Neighbours.load(files.neighbours) if files.neighbours.is_file() else None,
        measures=_read_json(files.measures) if files.measures.is_file() else {},
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it must hold a JSON object, got {type(content).__name__}")
    return content


def _read_metrics(path: Path) -> dict[str, Series]:
    points: dict[str, list[tuple[float, float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if "step" not in (rows.fieldnames or []):
            raise ValueError(f"{path} has no column 'step'; its columns are {rows.fieldnames}")
        for row in rows:
            for name, text in row.items():
                # A run that goes on may be in the middle of its last line.
                if name and name != "step" and text and row["step"]:
                    value = _number(text, path)
                    if math.isfinite(value):
                        points.setdefault(name, []).append((_number(row["step"], path), value))
    series = {}
    for name, pairs in points.items():
        steps, values = np.array(pairs).T
        order = np.argsort(steps, kind="stable")
        series[name] = (steps[order], values[order])
    return series


def _number(text: str, path: Path) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{path}: {text!r} is not a number") from None


def _read_skipped(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        return []
    lines = (
        line.rpartition("\t")
        for line in path.read_text("utf-8", errors="backslashreplace").splitlines()
        if line.strip()
    )
    return [(file or reason, reason if file else "") for file, _, reason in lines]

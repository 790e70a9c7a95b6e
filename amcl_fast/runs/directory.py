"""The directory of a run: the name of every file in it, what is kept beside the log, and the folder of a new one."""

import itertools
import json
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..left_out import listed
from .files import PARTIAL, remove_partial, write_file
from .lock import LOCK, RunLock

RUNS = Path("runs")
LATEST = "latest"
"""In place of a run: the one that saved last."""
AUTO = "auto"
"""In place of a run: that of the folder of a new one, if there is one."""

CONFIG = "config.yaml"
METRICS = "metrics.csv"
SKIPPED = "skipped_files.txt"
CHECKPOINTS = "checkpoints"
CHECKPOINT_SUFFIX = ".ckpt"
LAST = Path(CHECKPOINTS) / f"last{CHECKPOINT_SUFFIX}"
PAGE, SUMMARY = "index.html", "summary.json"
"""Of a report, and of a comparison of runs."""

_EVALUATION = ("evaluation-", ".json")
EVALUATIONS = "*".join(_EVALUATION)
_FINE_TUNING = ("fine-tuning-", ".json")
FINE_TUNINGS = "*".join(_FINE_TUNING)

# Lightning's launcher starts the other processes with the same command line; they inherit the folder.
VARIABLE = "AMCL_FAST_RUN_DIR"


@dataclass(frozen=True)
class RunDirectory:
    """Where each file of a run lies.

    Attributes:
        path: of the directory.
    """

    path: Path

    @classmethod
    def of(cls, checkpoint: Path) -> "RunDirectory":
        """The directory of the run to which a checkpoint belongs."""
        return cls(checkpoint.parent.parent)  # / is its own

    @property
    def config(self) -> Path:
        return self.path / CONFIG

    @property
    def metrics(self) -> Path:
        return self.path / METRICS

    @property
    def events(self) -> Path:
        """Folder of TensorBoard's files."""
        return self.path / "tensorboard"

    @property
    def facts(self) -> Path:
        """What `write_facts` keeps."""
        return self.path / "run.json"

    @property
    def measures(self) -> Path:
        """What a study has measured of the run when it had ended."""
        return self.path / "measures.json"

    @property
    def skipped(self) -> Path:
        """What `write_skipped` keeps."""
        return self.path / SKIPPED

    @property
    def lock(self) -> Path:
        return self.path / LOCK

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def last(self) -> Path:
        """The checkpoint from which the run goes on."""
        return self.path / LAST

    def epoch(self, number: int) -> Path:
        """The checkpoint of an epoch, counted from 1, that is kept."""
        return self.checkpoints / f"epoch-{number:04d}{CHECKPOINT_SUFFIX}"

    def epochs(self) -> dict[int, Path]:
        """The checkpoints of epochs that are kept, by the epoch, in order."""
        found = {}
        for path in self.checkpoints.glob(f"epoch-*{CHECKPOINT_SUFFIX}"):
            number = path.name.removeprefix("epoch-").removesuffix(CHECKPOINT_SUFFIX)
            if number.isdecimal():
                found[int(number)] = path
        return dict(sorted(found.items()))

    @property
    def best(self) -> Path:
        """The checkpoint after which kNN was best, if it is kept."""
        return self.checkpoints / f"best{CHECKPOINT_SUFFIX}"

    def snapshot(self, moment: str) -> Path:
        """The snapshot of a moment, "before" or "after" training."""
        return self.path / "snapshots" / f"{moment}.npz"

    @property
    def neighbours(self) -> Path:
        """What kNN found when training had ended."""
        return self.path / "snapshots" / "neighbours.npz"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def page(self) -> Path:
        return self.report / PAGE

    def evaluation(self, data: str) -> Path:
        """What `amcl-fast evaluate` has found on a data set."""
        return self.path / data.join(_EVALUATION)

    def fine_tuning(self, data: str, fraction: float = 1.0) -> Path:
        """What fine-tuning on a share of the labels of a data set has come to."""
        return self.path / (data if fraction == 1 else f"{data}-{fraction:g}").join(_FINE_TUNING)

    @property
    def evaluations(self) -> dict[str, Path]:
        """Those that are there, by data set."""
        before, after = _EVALUATION
        found = sorted(self.path.glob(EVALUATIONS))
        return {path.name.removeprefix(before).removesuffix(after): path for path in found}

    @property
    def folders(self) -> tuple[Path, ...]:
        """Those within it, in which a training writes."""
        return self.checkpoints, self.events, self.neighbours.parent, self.report

    def clear(self) -> None:
        """Remove what processes that were killed have left half written."""
        remove_partial(self.path, *self.folders)


def aside(path: Path, step: int) -> Path:
    """Where a file of a step is kept when its run goes on from an earlier one."""
    return path.with_name(f"{path.stem}-step-{step}{path.suffix}")


def write_facts(run_dir: Path, facts: dict[str, Any]) -> None:
    """Keep what cannot be found out later, such as versions and device, in the run directory.

    Raises:
        OSError: it cannot be written.
    """
    write_file(RunDirectory(run_dir).facts, json.dumps(facts, indent=2) + "\n")


def write_skipped(run_dir: Path, skipped: Sequence[tuple[str, str]]) -> Path:
    """Write the list of (path, reason) of what was left out, shortened where it is long; returns where.

    Raises:
        OSError: it cannot be written.
    """
    path = RunDirectory(run_dir).skipped
    write_file(path, listed(skipped))
    return path


class NewFolder:
    """The folder of a new run, made and locked before anything long begins.

    Args:
        given: where; it may exist if it is empty. None: `runs/NAME-TIME`, and if another run has that, `-2` and so on.
        name: of the run.
        lock: of the run.

    Attributes:
        temporary: whether it lies among the system's temporary files instead, and goes with all that is in it.
    """

    def __init__(self, given: Path | None, name: str, lock: RunLock) -> None:
        self.given, self._name, self._lock = given, name, lock
        self.temporary = False
        self._made: list[Path] = []  # the innermost first

    def reserve(self) -> Path:
        """Make the folder, lock it, tell the processes that are started later; returns it.

        Raises:
            FileExistsError: a run or something else is in it.
            RunInUseError: another run has just taken it.
            OSError: it cannot be made.
        """
        while True:
            run_dir = self._make()
            try:
                self._lock.acquire(run_dir)
                break
            except FileNotFoundError:
                if run_dir.is_dir():
                    raise
                # A run that did not start has just taken the folder away.
        _check_empty(run_dir)  # of two that begin at once the other may have been here
        os.environ[VARIABLE] = str(run_dir)
        return run_dir

    def give_up(self) -> None:
        """Remove what was made, unless something is in it."""
        if self._lock.run_dir is not None:
            with suppress(OSError):
                RunDirectory(self._lock.run_dir).lock.unlink()
        self._lock.release()
        if self.temporary:
            for folder in self._made:
                shutil.rmtree(folder, ignore_errors=True)
        for folder in self._made:
            with suppress(OSError):
                folder.rmdir()

    def _make(self) -> Path:
        if self.temporary:
            self._made.insert(0, Path(tempfile.mkdtemp(prefix="amcl-fast-")))
            return self._made[0]
        if self.given is not None:
            self._made += _make_parents(self.given)
            with suppress(FileExistsError):
                self.given.mkdir()
                self._made.insert(0, self.given)
            _check_empty(self.given)
            return self.given
        first = RUNS / f"{self._name}-{time.strftime('%Y%m%d-%H%M%S')}"
        self._made += _make_parents(first)
        for run_dir in itertools.chain([first], (first.with_name(f"{first.name}-{n}") for n in itertools.count(2))):
            try:
                run_dir.mkdir()
            except FileExistsError:
                continue
            self._made.insert(0, run_dir)
            return run_dir
        raise AssertionError("there is always one more name")


def told_run_dir(given: Path | None) -> Path:
    """Folder of a run whose first process has made it.

    Raises:
        ValueError: it is not `given`, and nobody has told it.
    """
    told = os.environ.get(VARIABLE)
    if told is None and given is None:
        raise ValueError("--run_dir must be given, the same to every process, got none")
    return Path(told) if told is not None else given  # type: ignore[return-value]


def _make_parents(run_dir: Path) -> list[Path]:
    """Make the folders above; returns those that were not there, the innermost first."""
    lacking = list(itertools.takewhile(lambda folder: not folder.exists(), run_dir.parents))
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    return lacking


def _check_empty(run_dir: Path) -> None:
    """Raise FileExistsError if something is in the folder of a new run, beside its lock."""
    if not run_dir.is_dir():
        raise FileExistsError(f"{run_dir} is no folder; give another --run_dir")
    # A run that was killed while it wrote its settings holds nothing.
    left = re.compile(rf"{re.escape(LOCK)}|{re.escape(CONFIG)}.*{re.escape(PARTIAL)}")
    names = sorted(path.name for path in run_dir.iterdir() if not left.fullmatch(path.name))
    if not {CONFIG, CHECKPOINTS, METRICS}.isdisjoint(names):
        raise FileExistsError(
            f"{run_dir} holds a run, and two runs never share a folder; give another --run_dir, or go on with that "
            f"run: --resume {shlex.quote(str(run_dir))}, or the same command and --resume {AUTO}"
        )
    if names:
        some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise FileExistsError(f"{run_dir} holds {some}, which is no run; a new run takes an empty folder or a new one")

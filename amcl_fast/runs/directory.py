"""The folder of a new run: its name, whether it may be had, and how its processes agree on it."""

import itertools
import os
import shlex
import time
from contextlib import suppress
from pathlib import Path

from .lock import LOCK, RunLock

RUNS = Path("runs")
LATEST = "latest"
"""In place of a run: the one that saved last."""

CONFIG = "config.yaml"
# Lightning's launcher starts the other processes with the same command line; they inherit the folder.
VARIABLE = "AMCL_FAST_RUN_DIR"


class NewFolder:
    """The folder of a new run, made and locked before anything long begins.

    Args:
        given: where; it may exist if it is empty. None: `runs/NAME-TIME`, and if another run has that, `-2` and so on.
        name: of the run.
        lock: of the run.
    """

    def __init__(self, given: Path | None, name: str, lock: RunLock) -> None:
        self.given, self._name, self._lock = given, name, lock
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
                (self._lock.run_dir / LOCK).unlink()
        self._lock.release()
        for folder in self._made:
            with suppress(OSError):
                folder.rmdir()

    def _make(self) -> Path:
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
        raise ValueError("every process must know the folder of the run: give --run_dir")
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
    names = sorted(path.name for path in run_dir.iterdir() if path.name != LOCK)
    if CONFIG in names or "checkpoints" in names or "metrics.csv" in names:
        raise FileExistsError(
            f"{run_dir} holds a run, and two runs never share a folder; give another --run_dir, or go on with that "
            f"run: --resume {shlex.quote(str(run_dir))}"
        )
    if names:
        some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise FileExistsError(f"{run_dir} holds {some}, which is no run; a new run takes an empty folder or a new one")

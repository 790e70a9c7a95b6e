"""The trainings of a study: each a run of its own, in a process of its own, one after the other."""

import os
import signal
import statistics
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from types import FrameType, TracebackType
from typing import Any, Self

from ..callbacks.signals import HANDLED
from ..progress import duration
from ..runs.directory import VARIABLE, RunDirectory
from ..runs.read import Run, read_run

_REFUSED = 2
"""How `amcl-fast pretrain` ends where its settings, or the data, are such that nothing can be trained."""


class StopError(Exception):
    """The study ends before its trainings; the message says why. `code` is the exit code of its command."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Training:
    """One training of a study.

    Attributes:
        recipe: its name.
        seed: of weights and data.
        study: folder in which the run's own lies.
        settings: of `amcl-fast pretrain`, beside the recipe.
        moved: what an unfinished run is told beside: where its data lie now, say.
        name: of the cell of the study to which it belongs; empty: the recipe's.
    """

    recipe: str
    seed: int
    study: Path
    settings: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    name: str = ""

    def __str__(self) -> str:
        return f"{self.cell}, seed {self.seed}"

    @property
    def cell(self) -> str:
        """What the study compares it as."""
        return self.name or self.recipe

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return self.study / f"{self.cell}-{self.seed}"

    @property
    def begun(self) -> bool:
        """Whether there is a run to go on with, or to read."""
        return RunDirectory(self.run_dir).config.is_file()

    def result(self) -> Run | None:
        """What the run has left, once it has come to its end.

        Raises:
            ValueError: that is damaged.
        """
        if not RunDirectory(self.run_dir).facts.is_file():
            return None
        run = read_run(self.run_dir)
        return run if run.facts.get("finished") else None

    @property
    def arguments(self) -> list[str]:
        """The command line of the training, or of what is left of it."""
        if self.begun:
            return ["pretrain", "--resume", str(self.run_dir), *self.moved]
        new = ["--recipe", self.recipe, "--seed_everything", str(self.seed), "--run_dir", str(self.run_dir)]
        return ["pretrain", *new, *self.settings]


class Commands:
    """Runs commands of `amcl-fast` in processes of their own while the block lasts, one at a time.

    What asks this process to stop (`HANDLED`) asks the one that runs, which saves first. It gets each signal once, from
    here: it is in a session of its own, to which no terminal sends any.

    Attributes:
        received: the first signal that came, 0 if none has.
    """

    def __init__(self) -> None:
        self.received = 0
        self._process: Popen[bytes] | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows it there alone
            for signum in HANDLED:
                if signal.getsignal(signum) is not signal.SIG_IGN:  # as under nohup
                    self._previous[signum] = signal.signal(signum, self._pass_on)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def run(self, arguments: Sequence[str]) -> int:
        """Run `amcl-fast` with arguments, to its end; returns the exit code, -N if signal N has ended the process."""
        sys.stdout.flush()
        command = [sys.executable, "-m", "amcl_fast.cli", *arguments]
        process = Popen(command, env=_environment(), start_new_session=True)
        # No signal in between, or it would be passed on twice: not before, or the process would never get any.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        if self.received:  # while it was started
            process.send_signal(self.received)
        self._process = process
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        try:
            return process.wait()
        finally:
            self._process = None

    def _pass_on(self, signum: int, frame: FrameType | None) -> None:
        self.received = self.received or signum
        if self._process is not None:
            self._process.send_signal(signum)


def train_all(trainings: Sequence[Training], redraw: Callable[[dict[Training, Run]], None]) -> list[Training]:
    """Run every training that has not finished to its end, in order.

    A training that fails is no reason to leave out those after it; the next study tries it again.

    Args:
        trainings: which; those that have finished are read.
        redraw: called with what has finished: at the beginning, and after each training.

    Returns:
        Those that failed.

    Raises:
        StopError: a signal came, or a training was refused, as those after it would be.
        ValueError, OSError: what a run has left cannot be read; or of `redraw`.
    """
    done = {training: run for training in trainings if (run := training.result())}
    failed = []
    redraw(done)
    with Commands() as commands:
        for number, training in enumerate(trainings, 1):
            if training in done:
                continue
            left = [other for other in trainings if other not in done and other not in failed]
            print(f"training {number} of {len(trainings)}: {training}{_estimate(done, left)}", flush=True)
            code = commands.run(training.arguments)
            if run := training.result() if code == 0 else None:
                done[training] = run
                redraw(done)
            if commands.received and len(done) < len(trainings):
                stopped = f"stopped after {len(done)} of {len(trainings)} trainings"
                raise StopError(stopped, 128 + commands.received)
            if code == _REFUSED:
                raise StopError(f"the training of {training} was refused, as told above", _REFUSED)
            if training not in done:
                failed.append(training)
                print(f"the training of {training} {_how(code, training)}", file=sys.stderr, flush=True)
    return failed


def _how(code: int, training: Training) -> str:
    """How a training has ended that has not finished."""
    if not code and training.begun:  # nothing was left to train, and what comes after it no resume does
        return f"has reached its end and was ended before all was measured: remove {training.run_dir} to train it again"
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"{how} before its last epoch"


def _estimate(done: dict[Training, Run], left: Sequence[Training]) -> str:
    """How long the rest takes, by what trainings of the same cell took, or others where it has none."""
    took: dict[str, list[float]] = {}
    for training, run in done.items():
        if isinstance(seconds := run.facts.get("seconds"), int | float):
            took.setdefault(training.cell, []).append(seconds)
    if not took:
        return ""
    means = {cell: statistics.fmean(seconds) for cell, seconds in took.items()}
    rest = sum(means.get(training.cell, statistics.fmean(means.values())) for training in left)
    return f"; about {duration(rest)} to the end of the study, by the trainings so far"


def _environment() -> dict[str, str]:
    """For a training: it is this one's alone, and starts what processes it needs by itself.

    In a job of SLURM Lightning would wait for processes that srun starts.
    """
    return {name: value for name, value in os.environ.items() if name != VARIABLE and not name.startswith("SLURM_")}

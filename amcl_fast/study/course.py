"""The course of a study, whichever it is: its folder, its trainings, how it ends and goes on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..launch import by_others
from ..runs.directory import PAGE
from ..runs.lock import RunLock
from ..runs.read import Run
from .folder import moved, open_folder
from .training import StopError, Training, train_all


def refuse_launchers() -> None:
    """Raise ValueError if torchrun or srun has started this process beside others."""
    if by_others():
        raise ValueError(
            "a study must be started once, without torchrun or srun: its trainings start processes of their own, as "
            "many as --trainer.devices says"
        )


def carry_out(
    study: str,
    folder: Path,
    trainings: Sequence[Training],
    settings: Callable[[Training], Mapping[str, Any]],
    redraw: Callable[[Mapping[Training, Run]], None],
    command: str,
    trust: Sequence[str] = (),
) -> None:
    """Train what has not been trained yet, in order, and print where the page is.

    Args:
        study: its name.
        folder: its folder, in which it goes on.
        trainings: all of it.
        settings: all those of a training that begins now.
        redraw: writes JSON, figures and page of what has finished; called at the beginning and after each training.
        command: the study's, for who goes on with it.
        trust: what trainings that go on are told beside.

    Raises:
        StopError: it was stopped, or a training was refused or failed.
        ValueError: what is in the folder is of another study, or of other settings.
        OSError: a file cannot be written or read.
    """
    with RunLock() as lock:
        open_folder(folder, study, trainings, lock)
        told = [
            replace(training, moved=(*moved(training, settings(training)), *trust)) if training.begun else training
            for training in trainings
        ]
        try:
            failed = train_all(told, redraw)
        except StopError as stop:
            raise StopError(f"{stop}; go on with: {command}", stop.code) from None
    print(f"report      {folder / PAGE}")
    if failed:
        some = f"{failed[0]}" + (f" and {len(failed) - 1} more" if len(failed) > 1 else "")
        raise StopError(f"{len(failed)} of {len(trainings)} trainings failed, {some}; try again: {command}", 1)
